"""The teacher's label space -> the data set's, each case by name; ImageNet's real names come from timm."""

import json
import random
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_gdkd.errors import InputError
from hf_gdkd.models.class_matching import match_labels, matching_rows
from hf_gdkd.models.label_map import load_label_map

CRANES = (134, 517)  # bird and machine: the one whole name that stands twice


@cache
def imagenet(subset="imagenet-1k"):
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    return info.label_names(), info.label_descriptions()


def short(names):
    return [name.split(",")[0] for name in names]


def shouted(names):
    return [name.upper().replace(" ", "_").replace(",_", ", ") for name in names]


def shuffled(names, seed=0):
    order = random.Random(seed).sample(range(len(names)), len(names))
    return order, [names[i] for i in order]


def error(*args, **options):
    with pytest.raises(InputError) as caught:
        match_labels(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_identical():
    assert match_labels(["a", "b"], ["a", "b"]) == [0, 1]


def test_identical_lists_need_no_unique_names():
    assert match_labels(["a", "b", "a"], ["a", "b", "a"]) == [0, 1, 2]


@given(st.data())
def test_any_choice_of_the_source_classes(data):
    source = [f"class {chr(97 + i)}" for i in range(20)]
    index = data.draw(st.lists(st.sampled_from(range(20)), unique=True))
    assert match_labels(source, [source[i] for i in index]) == index


@pytest.mark.parametrize("name", ["aquarium_fish", "Aquarium Fish", "AQUARIUM-FISH", " aquarium  fish "])
def test_case_and_separators_do_not_matter(name):
    assert match_labels(["bear", "aquarium fish"], [name]) == [1]
    assert match_labels([name], ["aquarium fish"]) == [0]


def test_apostrophes_do_not_matter():
    assert match_labels(["jack-o'-lantern"], ["Jack o lantern"]) == [0]


def test_case_tells_classes_apart_where_it_must():
    assert match_labels(["Turkey", "turkey"], ["turkey", "Turkey"]) == [1, 0]


def test_synonyms_match_in_both_directions():
    long, brief = ["tench, Tinca tinca", "cougar, puma"], ["puma", "Tinca_tinca"]
    assert match_labels(long, brief) == [1, 0]
    assert match_labels(brief, long) == [1, 0]


def test_main_names_come_before_other_synonyms():
    assert match_labels(["chime, bell, gong", "gong, tam-tam"], ["gong", "bell"]) == [1, 0]
    assert match_labels(["missile", "projectile"], ["projectile, missile", "missile"]) == [1, 0]


def test_two_lists_of_synonyms_need_each_others_main_name():
    assert match_labels(["pool table, billiard table"], ["billiard table, pool table, snooker table"]) == [0]
    assert "could be" in error(["cornet, horn, trumpet, trump"], ["French horn, horn"])
    assert "could be" in error(["giant panda, panda"], ["lesser panda, red panda, panda"])


def test_ambiguous_synonym_is_an_error():
    assert "'panda' [0] (could be 'red panda, panda' [0] or 'giant panda, panda' [1])" in error(
        ["red panda, panda", "giant panda, panda"], ["panda"]
    )


def test_two_names_of_one_target_class_are_not_chosen_from():
    text = error(["maillot", "tank suit"], ["maillot, tank suit"])
    assert "could be 'maillot' [0] or 'tank suit' [1]" in text


def test_case_that_points_elsewhere_is_an_error():
    assert "could be" in error(["Cardigan, Cardigan Welsh corgi", "cardigan"], ["Cardigan"])
    assert "also fits" in error(["Cardigan"], ["Cardigan, Cardigan Welsh corgi", "cardigan"])


@pytest.mark.parametrize("target", [["cougar", "puma"], ["puma", "panther"], ["cat", "Cat"]])
def test_source_class_for_two_target_classes_is_an_error(target):
    assert "also fits" in error(["cougar, puma, panther", "cat"], target)


def test_name_that_stands_twice_is_an_error():
    assert "'a' [0] (could be 'a' [0] or 'a' [2])" in error(["a", "b", "a"], ["a", "b"])
    assert "2 of the 3" in error(["a", "b"], ["a", "b", "a"])


# ImageNet


def test_short_names_of_the_whole_imagenet_are_unique_only_by_order():
    """What the tests below stand on: the coinciding names in timm's data."""
    _, names = imagenet()
    assert [i for i, name in enumerate(names) if names.count(name) > 1] == [*CRANES]
    assert [i for i, name in enumerate(short(names)) if short(names).count(name) > 1] == [*CRANES, 638, 639]


@pytest.mark.parametrize("change", [list, short, shouted], ids=["full", "short", "shouted"])
def test_imagenet_synsets_and_descriptions_in_order(change):
    synsets, names = imagenet()
    every = list(range(1000))
    assert match_labels(change(names), synsets) == every
    assert match_labels(synsets, change(names)) == every
    assert match_labels(names, change(names)) == every
    assert match_labels(change(names), names) == every


@pytest.mark.parametrize("change", [list, short], ids=["full", "short"])
def test_background_first(change):
    synsets, names = imagenet()
    source = ["background", *change(names)]
    assert match_labels(source, names) == match_labels(source, synsets) == list(range(1, 1001))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("change", [list, short, shouted], ids=["full", "short", "shouted"])
def test_shuffled_synsets(seed, change):
    """The synsets decide, whatever stands twice among the names of the ordered side."""
    synsets, names = imagenet()
    order, target = shuffled(synsets, seed)
    assert match_labels(change(names), target) == order
    assert match_labels(synsets, target) == order


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("change", [list, short, shouted], ids=["full", "short", "shouted"])
@pytest.mark.parametrize("source", ["synsets", "names"])
def test_shuffled_names_never_match_wrongly(seed, change, source):
    synsets, names = imagenet()
    order, target = shuffled(change(names), seed)
    rows = matching_rows(synsets if source == "synsets" else names, target)
    assert all(order[i] == j for i, j in rows.items())
    lost = set(order) - set(rows.values())
    assert lost == {*CRANES} | ({638, 639} if change is short else set())


def test_shuffled_names_that_stand_twice_are_an_error_and_their_indices_mend_it():
    _, names = imagenet()
    order, target = shuffled(names)
    here = [order.index(crane) for crane in CRANES]
    text = error(names, target)
    assert "2 of the 1000 classes" in text and "could be 'crane' [134] or 'crane' [517]" in text
    label_map = {str(i): str(crane) for i, crane in zip(here, CRANES, strict=True)}
    assert match_labels(names, target, label_map) == order


def test_hundred_classes_of_a_thousand():
    synsets, names = imagenet()
    index = [i for i in random.Random(0).sample(range(1000), 100) if i not in CRANES]
    for source in (synsets, names, short(names)):
        assert match_labels(source, [synsets[i] for i in index]) == index
        assert match_labels(source, [names[i] for i in index]) == index


def test_synsets_of_a_subset_with_names_of_a_subset():
    synsets, names = imagenet()
    assert match_labels(names[:50], synsets[20:40]) == list(range(20, 40))
    assert match_labels(["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["Chihuahua"]) == [0]


def test_name_of_another_imagenet_class_does_not_decide():
    """A lone "crane" may be either; "harp" is the harp, though the harmonica is called so, too."""
    assert "ImageNet's 'crane'" in error(["crane"], ["n02012849"])
    assert "ImageNet's 'crane'" in error(["n02012849"], ["crane"])
    assert "ImageNet's 'harp'" in error(["n03494278"], ["harp"])
    assert match_labels(["n03494278", "n03495258"], ["harp", "harmonica"]) == [1, 0]


@pytest.mark.parametrize("subset", ["imagenet-12k", "imagenet-21k-miil", "imagenet-22k-ms"])
def test_larger_subsets(subset):
    synsets, names = imagenet(subset)
    assert match_labels(names, synsets) == list(range(len(names)))
    wanted = [s for s in imagenet()[0] if s in set(synsets)]
    assert [synsets[j] for j in match_labels(names, wanted)] == wanted


def test_synset_that_the_teacher_lacks():
    text = error(imagenet("imagenet-22k")[1], imagenet()[0])
    assert "1 of the 1000 classes" in text and "'n04399382'" in text  # the teddy came later


# Classes without names


def test_numbered_on_both_sides():
    labels = [f"LABEL_{i}" for i in range(12)]
    numbers = [str(i) for i in range(12)]
    assert match_labels(labels, numbers) == match_labels(numbers, labels) == list(range(12))
    order, target = shuffled(numbers)
    assert match_labels(labels, target) == order
    assert matching_rows(labels, target) == dict(enumerate(order))


@pytest.mark.parametrize("target", [9, 11])
def test_numbered_with_other_counts(target):
    text = error([f"LABEL_{i}" for i in range(10)], [str(i) for i in range(target)])
    assert "neither the teacher nor the data set names its classes" in text
    assert "(10 classes)" in text and f"({target})" in text


def test_one_side_numbered():
    labels, names = ["LABEL_0", "LABEL_1"], ["cat", "dog"]
    text = error(labels, names, source_name="me/teacher")
    assert "names of the classes of me/teacher are unknown" in text and "'LABEL_0'" in text
    assert "--label_map" in text
    assert "names of the classes of the data set are unknown" in error(names, ["0", "1"])
    assert "unknown" in error(labels, names, {"cat": "1"})
    assert matching_rows(labels, names) == {}


CHARACTERS = [*"0123456789", *map(chr, range(65, 91)), *map(chr, range(97, 123))]


def test_numbers_are_names_among_other_names():
    """A teacher of digits and letters on a data set of digits: numbers that the other side has among its names."""
    digits = CHARACTERS[:10]
    assert match_labels(CHARACTERS, digits) == list(range(10))
    order, shaken = shuffled(CHARACTERS)
    assert match_labels(CHARACTERS, shaken) == order
    assert [shaken[j] for j in match_labels(shaken, digits)] == digits
    assert matching_rows(digits, shaken) == {shaken.index(d): i for i, d in enumerate(digits)}
    assert match_labels(["LABEL_0", "LABEL_1", "cat"], ["LABEL_1"]) == [1]


@pytest.mark.parametrize(
    "source, target",
    [
        ([f"LABEL_{i}" for i in range(10)], ["cat", "1"]),
        (CHARACTERS[10:], list("0123")),
        (["0", "1", "2"], ["0", "1", "cat"]),
        ([*CHARACTERS[:9], "cat"], list("0123456789")),
    ],
)
def test_mere_numbers_stay_unknown(source, target):
    assert "are unknown: it only numbers them" in error(source, target)
    assert matching_rows(source, target) == {}


def test_label_map_names_a_numbered_teacher():
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert match_labels(labels, ["cat", "dog"], {"cat": "LABEL_2", "dog": "0"}) == [2, 0]
    assert match_labels(labels, ["cat", "dog"], {"cat": 2, "dog": 0}) == [2, 0]


# Errors, label maps, rows


def test_unmatched_are_counted_and_the_ways_out_are_told():
    teacher, data = "google/vit-base-patch16-224", "timm/mini-imagenet"
    text = error(["cat"], ["cat", *"stuvwx"], source_name=teacher, target_name=data)
    said = f"6 of the 7 classes of the data set {data} match no single class of {teacher}: "
    assert text.startswith(said)
    assert "'s', 't', 'u', 'v', 'w', ...;" in text and "'x'" not in text
    assert text.endswith("or distil without labels, in the teacher's own classes (--label_free)")
    assert "--label_map" in text and "--loss ce" in text
    assert "hf-gdkd distill --loss ce --student google/vit-base-patch16-224 --dataset timm/mini-imagenet)" in text
    assert "--student <teacher> --dataset <data set>)" in error(["cat"], ["dog"])
    assert "--dataset 'my data'" in error(["cat"], ["dog"], target_name="my data")


def test_label_map_overrules_names_and_may_share_a_class():
    assert match_labels(["cat", "dog"], ["kitten", "Cat", "dog"], {"kitten": "cat"}) == [0, 0, 1]
    assert match_labels(["cat", "dog"], ["cat", "dog"], {"cat": "dog", "dog": "cat"}) == [1, 0]


def test_label_map_prefers_names_to_indices():
    assert match_labels(["7", "x", "y"], ["a"], {"a": "7"}) == [0]


@pytest.mark.parametrize(
    "label_map, said",
    [
        ({"kitty": "cat"}, "'kitty', but its keys must be classes of the data set"),
        ({"cat": "lion"}, "'lion', but its values must be classes of the teacher"),
        ({"cat": "3"}, "by name or as an index below 3: 'cat', 'twin', 'twin'"),
        ({"cat": "-1"}, "'-1'"),
        ({"cat": "twin"}, "classes 1, 2 have that name: write the index"),
    ],
)
def test_label_map_with_names_that_do_not_exist(label_map, said):
    assert said in error(["cat", "twin", "twin"], ["cat"], label_map)


def test_rows_of_a_head():
    assert matching_rows(["cat", "dog", "cow"], ["horse", "Dog", "cat"]) == {1: 1, 2: 0}
    assert matching_rows(["a", "b", "a"], ["a", "b"]) == {1: 1}
    assert matching_rows(["cat"], []) == {}


@pytest.mark.parametrize(
    "name, text",
    [
        ("map.yaml", "kitten: cat\nno: yes\n007: 1e3\n"),
        ("map.json", '\ufeff{"kitten":\t"cat", "no": "yes", "007": "1e3"}'),
        ("map.yml", '{"kitten": "cat", "no": "yes", "007": "1e3"}'),
    ],
)
def test_load_label_map(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_label_map(tmp_path / name) == {"kitten": "cat", "no": "yes", "007": "1e3"}


def test_load_label_map_indices(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"cat": 3}))
    (tmp_path / "map.yaml").write_text("cat: 3")
    assert load_label_map(tmp_path / "map.json") == load_label_map(str(tmp_path / "map.yaml")) == {"cat": "3"}


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("absent.yaml", None, "cannot be read (No such file"),
        ("list.yaml", b"- cat\n- dog\n", "is not a mapping"),
        ("list.json", b'[["cat", "dog"]]', "is not a mapping"),
        ("empty.yaml", b"", "is not a mapping"),
        ("broken.yaml", b"cat: [dog\n", "neither YAML nor JSON"),
        ("broken.json", b'{"cat": ', "neither YAML nor JSON"),
        ("binary.yaml", b"\xff\xfe\x00", "neither YAML nor JSON"),
        ("nested.yaml", b"cat: {dog: cow}\n", "has no single name for 'cat'"),
        ("nested.json", b'{"cat": ["dog"]}', "has no single name for 'cat'"),
        ("hole.yaml", b"cat:\n", "has no single name for 'cat'"),
        ("null.json", b'{"cat": null}', "has no single name for 'cat'"),
        ("twice.yaml", b"cat: dog\ncat: cow\n", "has 'cat' twice"),
        ("twice.json", b'{"cat": "dog", "cat": "cow"}', "has 'cat' twice"),
        ("object.yaml", b"!!python/object/apply:os.system [exit]\n", "is not a mapping"),
    ],
)
def test_bad_label_map_files(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_label_map(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_plain_names_import_neither_timm_nor_transformers():
    code = (
        "import sys; from hf_gdkd.models.class_matching import match_labels; match_labels(['a', 'b'], ['b']); "
        "sys.exit(any(name in sys.modules for name in ('timm', 'transformers', 'torchvision')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
