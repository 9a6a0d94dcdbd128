"""The losses on features against their formulas, written with loops, and their invariances."""

import math

import pytest
import torch
from torch import nn

from hf_gdkd.errors import InputError
from hf_gdkd.losses import FEATURE_LOSSES, Features, build_loss, loss_options, register_loss
from hf_gdkd.losses.features import relations
from hf_gdkd.losses.review import ABF, hcl

# student and teacher: channels and sizes by stage, pooled size
STUDENT, TEACHER = ([(3, 9), (5, 6), (6, 4)], 6), ([(2, 12), (4, 8), (7, 4), (8, 2)], 10)


def features(shapes=STUDENT, n=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    stages, size = shapes
    maps = [torch.randn(n, c, s, s, generator=g, dtype=torch.float64).to(dtype) for c, s in stages]
    return Features(maps, torch.randn(n, size, generator=g, dtype=torch.float64).to(dtype))


def built(name, student, teacher, **options):
    torch.manual_seed(3)
    loss = build_loss(name, **options)
    loss.build(student, teacher)
    return loss.double()


def leaves(features):
    return Features([x.clone().requires_grad_() for x in features.stages], features.pooled.clone().requires_grad_())


def averaged(stage, size):
    """A map averaged down to `size`, by loops over its cells; they overlap where the size does not divide."""
    n, c, height, width = stage.shape
    out = stage.new_zeros(n, c, size, size)
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, math.ceil((i + 1) * height / size))
            columns = slice(j * width // size, math.ceil((j + 1) * width / size))
            out[:, :, i, j] = stage[:, :, rows, columns].mean((2, 3))
    return out


# The formulas


def test_fitnet_is_the_squared_error_of_the_middle_stage():
    """Stages are paired from the deepest up; the second of three (and of four) is the hint."""
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("fitnet", student, teacher, reduction="none")
    weights, bias = loss.regressors[0].weight[:, :, 0, 0], loss.regressors[0].bias
    for i, value in enumerate(loss(student, teacher)):
        predicted = torch.einsum("tc,chw->thw", weights, student.stages[1][i]) + bias[:, None, None]
        predicted, target = averaged(predicted[None], 4)[0], teacher.stages[2][i]
        terms = [(predicted[c, y, x] - target[c, y, x]) ** 2 for c in range(7) for y in range(4) for x in range(4)]
        torch.testing.assert_close(value, sum(terms) / len(terms))
    four = features(TEACHER, seed=2)
    assert built("fitnet", four, teacher).regressors[0].weight.shape[:2] == (4, 4)
    assert built("fitnet", four, student).regressors[0].weight.shape[:2] == (5, 7)


def test_fitnet_is_zero_at_equality_after_the_identity():
    teacher = features(TEACHER)
    loss = built("fitnet", teacher, teacher)
    nn.init.dirac_(loss.regressors[0].weight)
    nn.init.zeros_(loss.regressors[0].bias)
    assert loss(teacher, teacher).item() == 0
    assert loss(features(TEACHER, seed=1), teacher).item() > 0.1


def test_fitnet_of_all_stages_is_the_mean_over_them():
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("fitnet", student, teacher, stages="all", reduction="none")
    assert [layer.weight.shape[:2] for layer in loss.regressors] == [(4, 3), (7, 5), (8, 6)]
    expected = 0.0
    for layer, s, t in zip(loss.regressors, student.stages, teacher.stages[1:], strict=True):
        expected = expected + (averaged(layer(s), t.shape[2]) - t).square().mean((1, 2, 3)) / 3
    torch.testing.assert_close(loss(student, teacher), expected)
    last = built("fitnet", student, teacher, stages="last", normalize=False)
    assert last.regressors[0].weight.shape[:2] == (8, 6)


@pytest.mark.parametrize("stages", [None, "middle", "last", "all"])
def test_normalized_fitnet_knows_no_scale_or_offset_of_the_teachers_channels(stages):
    """Each channel has mean 0 and variance 1 over the batch and its places; unset is the last stage."""
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("fitnet", student, teacher, normalize=True, stages=stages)
    moved = [x * torch.linspace(2, 90, x.shape[1])[:, None, None] - 40 for x in teacher.stages]
    torch.testing.assert_close(loss(student, Features(moved, None)), loss(student, teacher), rtol=1e-4, atol=0)
    standard = [(x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True) for x in moved]
    plain = built("fitnet", student, teacher, stages=stages or "last")
    if stages in (None, "last"):  # the others are averaged down to the student's size before
        torch.testing.assert_close(
            loss(student, Features(moved, None)), plain(student, Features(standard, None)), rtol=1e-4, atol=0
        )


def test_at_is_the_squared_difference_of_unit_attention():
    student, teacher = features(), features(TEACHER, seed=1)
    expected = torch.zeros(5, dtype=torch.float64)
    for s, t, size in zip(student.stages, teacher.stages[1:], (8, 4, 2), strict=True):
        s, t = averaged(s, size), averaged(t, size)
        for i in range(5):
            a, b = (
                [sum(float(v) ** 2 for v in x[i, :, row, column]) for row in range(size) for column in range(size)]
                for x in (s, t)
            )
            a, b = ([v / math.sqrt(sum(w * w for w in x)) for v in x] for x in (a, b))
            expected[i] += sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / size**2
    torch.testing.assert_close(built("at", student, teacher, reduction="none")(student, teacher), expected)


def test_at_knows_no_scale():
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("at", student, teacher)
    scaled = Features([s * factor for s, factor in zip(student.stages, (0.1, 3.0, 50.0), strict=True)], student.pooled)
    torch.testing.assert_close(loss(scaled, teacher), loss(student, teacher))
    assert loss(student, Features([9 * s for s in student.stages], student.pooled)).item() < 1e-30


def huber(a, b):
    gap = abs(a - b)
    return gap * gap / 2 if gap < 1 else gap - 0.5


def test_rkd_is_the_huber_loss_of_distances_and_angles():
    student, teacher = features(), features(TEACHER, seed=1)
    n, both = 5, []
    for x in (student.pooled, teacher.pooled):
        distance = [[math.dist(x[i].tolist(), x[j].tolist()) for j in range(n)] for i in range(n)]
        mean = sum(map(sum, distance)) / (n * (n - 1))
        angle = {}
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[j] - x[i], x[k] - x[i]
                    angle[i, j, k] = float(a @ b / (a.norm() * b.norm())) if i not in (j, k) else 0.0
        both.append(([[d / mean for d in row] for row in distance], angle))
    (distance_s, angle_s), (distance_t, angle_t) = both
    distances = [huber(distance_s[i][j], distance_t[i][j]) for i in range(n) for j in range(n)]
    angles = [huber(angle_s[key], angle_t[key]) for key in angle_s]
    loss = build_loss("rkd")
    parts = loss.parts(student, teacher)
    assert parts["rkd_distance"].item() == pytest.approx(sum(distances) / n**2, rel=1e-9)
    assert parts["rkd_angle"].item() == pytest.approx(sum(angles) / n**3, rel=1e-9)
    total = 25 * parts["rkd_distance"] + 50 * parts["rkd_angle"]
    torch.testing.assert_close(loss(student, teacher), total)


def test_rkd_knows_no_translation_rotation_or_scale():
    student, teacher = features(), features(TEACHER, seed=1)
    loss = build_loss("rkd")
    value = loss(student, teacher)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = 7 * student.pooled @ rotation + 100
    torch.testing.assert_close(loss(Features([], moved), teacher), value)
    assert loss(student, Features([], moved)).item() < 1e-20
    assert loss(Features([], student.pooled * torch.arange(1.0, 7)), teacher).item() != pytest.approx(value.item())


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0, 2, 1]), torch.rand(5, 3)], ids=["no", "hard", "soft"])
def test_crd_picks_the_same_sample_among_those_of_other_classes(labels):
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("crd", student, teacher, temperature=0.2, embedding_size=4)
    s, t = (x.detach() for x in (loss.embed_student(student.pooled), loss.embed_teacher(teacher.pooled)))
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or labels is None or labels.ndim == 2 or labels[j] != labels[i]]
        for anchors, candidates in ((s, t), (t, s)):
            scores = [
                math.exp(float(anchors[i] @ candidates[j] / anchors[i].norm() / candidates[j].norm()) / 0.2)
                for j in others
            ]
            expected -= math.log(scores[others.index(i)] / sum(scores)) / 5
    assert loss(student, teacher, labels).item() == pytest.approx(expected, rel=1e-9)


def test_hcl_is_a_pyramid():
    s, t = features(seed=1).stages[1], features(seed=2).stages[1]
    for size, scales in ((6, (6, 4, 2, 1)), (4, (4, 2, 1)), (3, (3, 2, 1)), (1, (1,))):
        a, b = averaged(s, size), averaged(t, size)
        terms = [0.5**i * ((averaged(a, k) - averaged(b, k)) ** 2).mean((1, 2, 3)) for i, k in enumerate(scales)]
        torch.testing.assert_close(hcl(a, b), sum(terms) / sum(0.5**i for i in range(len(scales))))


def test_abf_weighs_a_stage_and_what_comes_up():
    """New normalisation is the identity in evaluation; nearest neighbours up to the stage's and the target's size."""
    torch.manual_seed(0)
    fusion = ABF(3, 4, 5, fuse=True).double().eval()
    for norm in (fusion.reduce[1], fusion.expand[1]):
        norm.eps = 0.0
    stage, deeper = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 4, 2, 2, dtype=torch.float64)
    out, up = fusion(stage, deeper, (8, 8))
    reduced = torch.einsum("mc,nchw->nmhw", fusion.reduce[0].weight[:, :, 0, 0], stage)
    attend = fusion.attend[0]
    for y in range(8):
        for x in range(8):
            a, b = reduced[:, :, y // 2, x // 2], deeper[:, :, y // 4, x // 4]
            gates = torch.sigmoid(torch.cat([a, b], 1) @ attend.weight[:, :, 0, 0].T + attend.bias)
            torch.testing.assert_close(up[:, :, y, x], gates[:, :1] * a + gates[:, 1:] * b)
    torch.testing.assert_close(out, nn.functional.conv2d(up, fusion.expand[0].weight, padding=1))


def test_reviewkd_goes_from_the_deepest_stage_up():
    student, teacher = features(), features(TEACHER, seed=1)
    loss = built("reviewkd", student, teacher, reduction="none")
    assert len(loss.fusions) == 4 and loss.fusions[0].attend is None
    up, expected = None, 0.0
    ours = [student.pooled[:, :, None, None], *student.stages[::-1]]
    theirs = [teacher.pooled[:, :, None, None], *teacher.stages[:0:-1]]
    for fusion, s, t in zip(loss.fusions, ours, theirs, strict=True):
        out, up = fusion(s, up, t.shape[2:])
        assert out.shape == t.shape
        expected = expected + hcl(out, t)
    torch.testing.assert_close(loss(student, teacher), expected)


def test_reviewkd_of_one_sample_takes_the_running_statistics():
    student, teacher = features(n=1), features(TEACHER, n=1, seed=1)
    loss = built("reviewkd", student, teacher)
    assert loss(student, teacher).isfinite()
    assert loss.fusions[0].reduce[1].num_batches_tracked == 0
    loss(features(), features(TEACHER))
    assert loss.fusions[0].reduce[1].num_batches_tracked == 1


# What all of them promise


@pytest.mark.parametrize("name", sorted(FEATURE_LOSSES.keys() - {"vitkd"}))  # see test_vitkd.py
def test_only_student_and_projections_learn(name):
    student, teacher = leaves(features()), leaves(features(TEACHER, seed=1))
    loss = built(name, student, teacher)
    loss(student, teacher, torch.arange(5)).backward()
    used = [x for x in (*student.stages, student.pooled) if x.grad is not None]
    assert used and all(x.grad.abs().max() > 0 for x in used)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
    assert not [x for x in (*teacher.stages, teacher.pooled) if x.grad is not None]
    if name in ("fitnet", "reviewkd", "crd", "cwd_features"):
        assert list(loss.parameters())
    assert [x is not None for x in (student.stages[1].grad, student.stages[2].grad, student.pooled.grad)] == {
        "fitnet": [True, False, False], "at": [True, True, False], "reviewkd": [True, True, True],
        "cwd_features": [False, True, False],
    }.get(name, [False, False, True])  # fmt: skip


@pytest.mark.parametrize("name", sorted(FEATURE_LOSSES.keys() - {"vitkd"}))  # see test_vitkd.py
def test_gradcheck(name):
    student, teacher = features(n=3), features(TEACHER, n=3, seed=1)
    loss = built(name, student, teacher)
    inputs = [x.requires_grad_() for x in (*student.stages, student.pooled)]
    assert torch.autograd.gradcheck(lambda *x: loss(Features(x[:-1], x[-1]), teacher), inputs)


@pytest.mark.parametrize("name", sorted(FEATURE_LOSSES.keys() - {"vitkd"}))  # see test_vitkd.py
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_features_are_computed_in_float32(name, dtype):
    student, teacher = features(dtype=dtype), features(TEACHER, seed=1, dtype=dtype)
    loss = built(name, student, teacher)
    exact = loss(*(Features([x.double() for x in f.stages], f.pooled.double()) for f in (student, teacher)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss.float()(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["fitnet", "at", "reviewkd"])
def test_one_value_a_sample(name):
    student, teacher = features(), features(TEACHER, seed=1)
    none, mean, total = (built(name, student, teacher, reduction=r) for r in ("none", "mean", "sum"))
    each = none(student, teacher)
    assert each.shape == (5,)
    torch.testing.assert_close(mean(student, teacher), each.mean())
    torch.testing.assert_close(total(student, teacher), each.sum())


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 5.0]]), torch.ones(1, 3)])
def test_relations_of_samples_that_coincide(x):
    x = x.clone().requires_grad_()
    distance, angle = relations(x)
    assert distance.isfinite().all() and angle.isfinite().all()
    (distance.square().sum() + angle.square().sum()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name, missing, said", [
    ("fitnet", "stages", "no feature maps were found in the student"),
    ("at", "stages", "no feature maps were found in the student"),
    ("reviewkd", "pooled", "the student has no linear classifier head"),
    ("rkd", "pooled", "the student has no linear classifier head"),
    ("crd", "pooled", "the student has no linear classifier head"),
])  # fmt: skip
def test_missing_features(name, missing, said):
    student = features()._replace(**{missing: [] if missing == "stages" else None})
    with pytest.raises(InputError, match=said):
        build_loss(name).build(student, features(TEACHER))


def test_options():
    assert loss_options("at") == loss_options("reviewkd") == ("student_layers", "teacher_layers")
    assert loss_options("fitnet") == ("student_layers", "teacher_layers", "normalize", "stages")
    assert loss_options("rkd") == ("distance_weight", "angle_weight")
    for name, options, said in [
        ("rkd", {"k": 3}, "'rkd' takes no option 'k': it takes distance_weight, angle_weight"),
        ("rkd", {"student_layers": ["a"]}, "takes no option 'student_layers'"),
        ("rkd", {"angle_weight": -1.0}, "angle_weight is -1.0"),
        ("crd", {"temperature": 0.0}, "temperature is 0.0"),
        ("crd", {"embedding_size": 0}, "embedding_size is 0"),
        ("fitnet", {"stages": "first"}, "stages is 'first': expected one of middle, last, all"),
        ("fitnett", {}, "did you mean 'fitnet'"),
    ]:
        with pytest.raises(InputError, match=said):
            build_loss(name, **options)
    with pytest.raises(InputError, match="'at' is taken by ATLoss"):
        register_loss("at", type(build_loss("kd")))
