"""Every picture is written, readable and not blank, from the smallest run to the largest."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from spml_fast import plots
from spml_fast.metrics import probability_counts
from spml_fast.sampling import AdaptationPath, AdaptationStage, Diagnostics, JointClass, LatentMixture, S2MResult


@pytest.fixture
def drawn(tmp_path):
    """Draws into a file without a warning and returns the picture, (height, width, 4) in [0, 1]."""

    def draw(plot, *args, **options):
        path = tmp_path / "picture.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot(*args, path, **options)
        picture = imread(path)
        assert picture.shape[0] > 100
        assert picture.shape[1] > 300
        assert picture.std() > 0.01
        return picture

    return draw


def counts(n_epochs, bins=100, seed=0):
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.random((n_epochs, 60, 7)))
    labels = torch.from_numpy(rng.random((60, 7)) < 0.3)
    observed = torch.zeros(60, dtype=torch.int64)
    return torch.stack([probability_counts(of_epoch, labels, observed, bins) for of_epoch in p])


def adapted(n_stages, channels=1, samples=20):
    """A result whose proposals took ``n_stages`` to adapt."""
    rng = torch.Generator().manual_seed(0)
    diagnostics = Diagnostics(
        n_chains=4,
        n_steps=8,
        acceptance_rate=0.4,
        support_rate=0.9,
        ess_per_proposal=0.3,
        max_weight_ratio=5.0,
        log_mean_weight=-1.0,
        tv_bound=0.8**8,
        burn_in=8,
        thin=8,
    )
    images = torch.rand(samples, channels, 6, 5, generator=rng)
    mixture = LatentMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
    stages = tuple(
        AdaptationStage(JointClass(range(n + 1)), diagnostics, 32, mixture, images) for n in range(n_stages)
    )
    parts = (images, torch.zeros(samples, 2), torch.zeros(samples), torch.arange(samples))
    return S2MResult(JointClass(range(n_stages)), *parts, diagnostics, AdaptationPath(stages))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(n_stages=1), dict(n_stages=6, channels=3), dict(n_stages=2, samples=1), dict(n_stages=1, samples=0)],
)
def test_adaptation(options, drawn):
    drawn(plots.plot_adaptation, adapted(**options))


def test_adaptation_of_a_joint_class_never_met(drawn):
    result = adapted(2)
    lost = replace(result.diagnostics, ess_per_proposal=0.0, max_weight_ratio=np.inf)
    drawn(plots.plot_adaptation, replace(result, diagnostics=lost))


def test_no_picture_of_no_adaptation(tmp_path):
    with pytest.raises(ValueError, match=r"proposals of \+0\+1 were not adapted"):
        plots.plot_adaptation(replace(adapted(2), adaptation=None), tmp_path / "picture.png")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 48), (3, 300, 200), (4, 5, 9)])
def test_samples(shape, drawn):
    rng = np.random.default_rng(0)
    rows = {name: rng.random((n, *shape)) for name, n in (("A+B", 20), ("a$b$", 3), ("none", 0))}
    drawn(plots.plot_samples, rows)
    drawn(plots.plot_samples, rows, n_columns=10, value_range=(-1, 1))


def test_no_samples_at_all(tmp_path):
    plots.plot_samples({"none": np.zeros((0, 3, 8, 8))}, tmp_path / "none.png")
    assert (tmp_path / "none.png").exists()


def test_pictures_in_a_range():
    images = np.array([-3.0, -1, 0, 1, 2]).reshape(5, 1, 1, 1) * np.ones((1, 3, 2, 2))
    images[2, 0] = 1
    pictures = plots.as_pictures(images, (-1, 1))
    assert pictures.shape == (5, 2, 2, 3)
    assert pictures[:, 0, 0].tolist() == [[0] * 3, [0] * 3, [1, 0.5, 0.5], [1] * 3, [1] * 3]
    assert plots.as_pictures(images)[[0, -1], 0, 0, 0].tolist() == [0, 1]
    assert plots.as_pictures(np.zeros((2, 2, 300, 200))).shape == (2, 128, 85, 3)


def epoch(number, phase="linear", **values):
    return {"phase": phase, "epoch": number, "train_loss": 1 / number, "validation_map": 0.5, **values}


COUNTS = {
    "one epoch": counts(1),
    "many epochs": counts(200),
    "few bins": counts(3, bins=1),
    "nothing": np.zeros((3, 2, 100), dtype=np.int64),
    "no positives": counts(4).numpy() * np.array([0, 1])[:, None],
    "constant": np.eye(2, 100, dtype=np.int64)[None].repeat(2, axis=0) * 10**9,
    "empty first epoch": np.concatenate([np.zeros((1, 2, 100), dtype=np.int64), counts(2)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize(
    "plot", [plots.plot_unobserved_positives, plots.plot_false_negative_share, plots.plot_distinguishing]
)
def test_plots_of_counts(drawn, plot, kind):
    drawn(plot, COUNTS[kind])


@pytest.mark.slow
def test_counts_may_be_tensors_arrays_or_lists(drawn):
    as_tensor = drawn(plots.plot_distinguishing, counts(2))
    assert np.array_equal(drawn(plots.plot_distinguishing, counts(2).numpy()), as_tensor)
    assert np.array_equal(drawn(plots.plot_distinguishing, list(counts(2))), as_tensor)


@pytest.mark.parametrize("wrong", [np.zeros((2, 100)), np.zeros((3, 3, 100)), [], np.zeros((1, 2, 0))])
@pytest.mark.parametrize(
    "plot", [plots.plot_unobserved_positives, plots.plot_false_negative_share, plots.plot_distinguishing]
)
def test_counts_of_another_shape(plot, wrong, tmp_path):
    with pytest.raises(ValueError, match=r"counts must have shape \(T, 2, bins\)"):
        plot(wrong, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_k_hat_is_drawn_over_the_last_epoch(drawn):
    without = drawn(plots.plot_false_negative_share, counts(2))
    asked = []

    def k_hat(p):
        asked.append(p)
        return 1 / (1 + np.exp(-(2 * p - 2)))

    curve = drawn(plots.plot_false_negative_share, counts(2), k_hat=k_hat)
    assert len(asked) == 1
    assert asked[0].min() == 0
    assert asked[0].max() == 1
    first, last = np.array_split(np.abs(curve - without).sum(axis=(0, 2)), 2)
    assert first.sum() == 0
    assert last.sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 6, plots.NAMED_CLASSES, plots.NAMED_CLASSES + 1, 1000])
def test_average_precision(drawn, n):
    drawn(plots.plot_average_precision, {f"class {i}": i / n for i in range(n)})


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 100])
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), None])
def test_average_precision_that_is_constant(drawn, n, value):
    drawn(plots.plot_average_precision, {str(i): value for i in range(n)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$", "a$b$", r"$\frac{$", "x_1^{2", "<b>&", "", "long " * 40, r"back\slash"])
def test_names_are_no_mathematics(drawn, name):
    drawn(plots.plot_average_precision, {name: 0.5, "other": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize(
    "epochs",
    [
        [epoch(1)],
        [epoch(1, validation_map=None)],
        [epoch(1, validation_map=float("nan")), epoch(2)],
        [epoch(i + 1, recovery_map=0.6, train_loss=None) for i in range(3)],
        [epoch(i + 1) for i in range(25)] + [epoch(i + 1, "finetune", recovery_map=0.9) for i in range(10)],
        [epoch(i + 1, "$odd$ phase" if i % 2 else "linear") for i in range(4)],
        [epoch(i + 1, validation_map=None, recovery_map=0.1) for i in range(300)],
        [{"epoch": 1}],
    ],
    ids=["one", "no mAP", "NaN", "no loss", "two phases", "odd phases", "recovery alone", "nothing known"],
)
def test_curves(drawn, epochs):
    drawn(plots.plot_curves, epochs)


def test_curves_mark_the_phases(drawn):
    two = [epoch(1), epoch(2), epoch(1, "finetune"), epoch(2, "finetune")]
    one = [{**e, "phase": "linear"} for e in two]
    assert not np.array_equal(drawn(plots.plot_curves, two), drawn(plots.plot_curves, one))


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [
        [(0.01, 8, 0.6)],
        [(10.0**-i, 8 * b, i / 10) for i in range(1, 5) for b in (1, 2)],
        [(10.0**-i, 2**b, i / 10) for i in range(1, 5) for b in range(9)],
        [(0.1, 8, None), (0.01, 8, float("nan")), (0.001, 8, 0.3)],
        [(0.1, 8, None)],
    ],
    ids=["one", "usual", "many sizes", "diverged", "all diverged"],
)
def test_grid(drawn, grid):
    drawn(
        plots.plot_grid, [dict(zip(("lr", "batch_size", "validation_map"), point, strict=True)) for point in grid]
    )


@pytest.mark.parametrize(
    ("plot", "nothing"),
    [(plots.plot_curves, []), (plots.plot_average_precision, {}), (plots.plot_grid, [])],
)
def test_nothing_to_draw(plot, nothing, tmp_path):
    with pytest.raises(ValueError, match="empty: there is nothing to draw"):
        plot(nothing, tmp_path / "picture.png")


def test_paths_may_be_strings(tmp_path):
    plots.plot_grid([{"lr": 0.1, "batch_size": 8, "validation_map": 0.2}], str(tmp_path / "grid.png"))
    assert imread(tmp_path / "grid.png").size


def test_median_of_a_histogram():
    assert plots.histogram_quantile(np.array([0, 0, 4, 0]), 0.5) == pytest.approx(0.625)
    assert plots.histogram_quantile(np.array([1, 1, 0, 0]), 0.5) == pytest.approx(0.25)
    assert plots.histogram_quantile(np.array([2, 0, 0, 2]), 0.75) == pytest.approx(0.875)
    assert np.isnan(plots.histogram_quantile(np.zeros(4), 0.5))
