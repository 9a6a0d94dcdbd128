"""Every shell and Python block of the README, the documentation and CONTRIBUTING.md is run, or says why not.

Each runs in a fork of one process, with the local Hub, cut short (`SHORT`): two steps on few digits, no picture. The
teacher that pages speak of (`runs/digits-teacher`) is made here.
"""

import importlib
import importlib.util
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT, blocks, script_and_flags
from hub_content import SPLITS, encode, picture

SHORT = """
from hf_gdkd.commands import finishing
from hf_gdkd.data import segmentation, sources
from hf_gdkd.tasks import semantic_segmentation
from hf_gdkd.training.config import GDKDConfig

def post_init(args, before=GDKDConfig.__post_init__):
    args.max_steps, args.use_cpu, args.per_device_train_batch_size, args.disable_tqdm = 2, True, 16, True
    args.dataloader_num_workers = 0
    before(args)

def few_digits(all_of_them=sources.load_digits):
    splits = all_of_them()
    for split, rows in splits.items():
        splits[split] = rows.select(range(60))
    return splits

def few_scenes(split, all_of_them=segmentation.digit_scenes):
    return all_of_them(split).select(range(16))

segmentation.digit_scenes, semantic_segmentation.draw_segmentation = few_scenes, lambda *_, **__: None
GDKDConfig.__post_init__, sources.load_digits, finishing.draw_training = post_init, few_digits, lambda *_: None
"""
SCRIPT = "from hf_gdkd.scripts import {script}; {script}.main({words!r})"
CONSOLE = "from hf_gdkd.commands.main import main; main({words!r})"
PARSED = "from hf_gdkd.commands.arguments.parsing import parse; parse({words!r})"
FOLDERS = {
    "photos": {"cat": 281, "dog": 207, "fox": 277, "bear": 294},
    "fish-and-pets": {"tabby": 281, "beagle": 162, "tench": 0},
}
RUNNABLE = [page for page in PAGES if any(block.marker in ("run", "hub", "exit") for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_is_done_with_it(page):
    for block in blocks(page):
        assert block.language, f"{block.where}: name the language of the block"
        if block.language in ("shell", "python"):
            assert block.marker is not None, f"{block.where}: no marker above the block"
            assert block.marker not in ("check", "exit", "file") or block.argument, block.where


def code_of(script: str, words: list[str]) -> str:
    """Python code that does what a command does."""
    weak = ["--allow_weak_teacher"] if script == "distill" or words[:1] in (["record"], ["estimate"]) else []
    if script in ("losses", "recipes", "cache"):
        return SHORT + CONSOLE.format(words=[script, *words, *weak])
    return SHORT + SCRIPT.format(script=script, words=[*words, *weak])


@pytest.fixture(scope="module")
def teacher(local_hub) -> Path:
    """runs/digits-teacher, trained for two steps."""
    _, forks = local_hub
    words = f"--dataset digits --loss ce --student {ROOT}/scripts/demo/cnn --student_init random --output_dir made"
    done = forks("python", code_of("distill", words.split()))
    assert done.returncode == 0, done.stderr
    return forks.folder / "made"


@pytest.fixture
def folder(page, teacher, tmp_path) -> Path:
    """A page's folder: the scripts, some photos and a teacher."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    shutil.copytree(teacher, tmp_path / "runs/digits-teacher")
    for name, classes in FOLDERS.items():
        for split, number in SPLITS.items():
            for label, index in classes.items():
                images = tmp_path / name / split / label
                images.mkdir(parents=True)
                for i in range(number):
                    (images / f"{i + 1}.jpg").write_bytes(encode(picture(index, i)))
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_blocks_of_a_page_run(page, folder, hub, forks, monkeypatch):
    monkeypatch.setattr(hub, "user", "me")
    stderr = ""  # of the command before
    for block in blocks(page):
        if block.marker == "file":
            (folder / block.argument).write_text(block.code + "\n", encoding="utf-8")
        if block.language == "text" and block.code.startswith("error: "):
            assert block.code.removesuffix("...").strip() in stderr, f"{block.where}: {stderr}"
        if block.marker not in ("run", "hub", "exit"):
            continue
        seen, expected = len(hub.log), int(block.argument) if block.marker == "exit" else 0
        if block.language == "python":
            codes = [SHORT + block.code]
        else:
            codes = [code_of(*script_and_flags(words)) for words in block.commands()]
        for code in codes:
            done = forks("python", code, cwd=str(folder))
            said = f"{block.where}: {code[len(SHORT) :]}\n{done.stdout}\n{done.stderr[-3000:]}"
            assert done.returncode == expected, said
            stderr = done.stderr
        assert block.marker != "run" or len(hub.log) == seen, f"{block.where} asks the Hub: mark it hub"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_names_flags_files_and_targets_that_exist(page, forks, tmp_path):
    for trained in ("cifar100/resnet32x4", "cityscapes/deeplabv3_resnet101"):  # teachers, as far as flags can tell
        (tmp_path / "runs" / trained).mkdir(parents=True)
    for block in blocks(page):
        for words in block.commands() if block.language == "shell" else ():
            for file in re.findall(r"scripts/[\w./-]+", " ".join(words)):
                assert (ROOT / file).exists(), f"{block.where}: no {file}"
            script, flags = script_and_flags(words)
            if block.marker == "check" and script == "distill":
                flags = [word for word in flags if word not in ("--bf16", "--fp16")]  # which a CPU may refuse
                done = forks("python", PARSED.format(words=[*flags, "--use_cpu"]), cwd=str(tmp_path))
                assert done.returncode == 0, f"{block.where}: {done.stderr}"
            elif script == "make":
                subprocess.run(["make", "-n", *flags], cwd=ROOT, check=True, capture_output=True)
            elif script == "pip":
                extras = re.findall(r"\[(\w+)\]", " ".join(flags))
                setup = ConfigParser()
                setup.read(ROOT / "setup.cfg")
                assert set(extras) <= set(setup["options.extras_require"]), block.where


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    """Links within the repository (mkdocs checks those between the pages again, with their anchors)."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target.split("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_the_names_and_files_that_pages_speak_of_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in set(re.findall(r"\bhf_gdkd(?:\.\w+)+", text)):
        module, rest = name, []
        while not found(module):
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
        value = importlib.import_module(module)
        for last in rest:
            value = getattr(value, last)
    for path in re.findall(r"`((?:hf_gdkd|scripts|tests|docs|model_cards)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page}: {path}"


def found(module: str) -> bool:
    """Whether a dotted name is a module."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_flags_that_pages_name_exist():
    """Flags in running text and tables are those of the scripts; the launchers' and tools' own are listed."""
    from hf_gdkd.commands.arguments.distill_flags import DistillArguments
    from hf_gdkd.training.config import GDKDConfig

    known = {*DistillArguments.__dataclass_fields__, *GDKDConfig.__dataclass_fields__, "config", "recipe"}
    parsers = (ROOT / "hf_gdkd/commands/arguments/other_flags.py").read_text()
    known |= set(re.findall(r'"--(\w+)"', parsers))
    known |= {"role_revision", "num_processes", "cpu", "config_file", "nproc_per_node", "strict", "help", "all"}
    known.add("threads")  # of a benchmark
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--([a-z]\w+)", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= known, (page, named - known)
