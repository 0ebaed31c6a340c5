"""Six attributes at once: the ten digits from one attribute an image, and what S2M takes for granted about them.

    pip install ".[train]" && python examples/six_attributes.py

Each image of a digit carries one of its attributes: even, prime, square, at least five, has a closed loop,
multiple of three. Nine joint classes say something of all six and hold a digit; 5 and 7 share one. Printed are:

- for which joint classes perfect density ratios find the right digits, by the full table, of which training sees
  nothing; on how many real images the learnt ratios do;
- what is drawn of each joint class, from the prior and from adapted proposals, by a judge that knows ten digits.

A joint class of every tenth image is not rare: adaptation brings more effective samples, but a larger M, and
``proposal=Mixture()`` leaves the prior as it is. It pays from rarer ones on.
"""

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import cross_val_predict
from sklearn.svm import SVC
from torch import Tensor, nn

import spml_fast as sf
from spml_fast.data.digits import PROPERTIES
from spml_fast.demo import jitter, train_generator
from spml_fast.labels import single_positives
from spml_fast.plots import plot_samples
from spml_fast.sampling import (
    AdaptationError,
    AdaptationPath,
    JointClass,
    S2MResult,
    SamplingWarning,
    s2m_log_weight,
)
from spml_fast.sampling.adaptation import KEEP_PRIOR_ESS
from spml_fast.training.trunks import small_cnn

NAMES = ("even", "prime", "square", "at least five", "closed loop", "multiple of three")
SHORT = ("even", "prime", "square", ">=5", "loop", "3n")
TABLE = torch.tensor([[digit in PROPERTIES[name] for name in NAMES] for digit in range(10)])
"""(10, 6) bool: which digit has which attribute. Every digit has at least one."""

WEIGHT = sf.MinMax(gamma=0.5, gamma_J=1.0)


def digits_of(target: JointClass) -> Tensor:
    """(10,) bool: the digits of a joint class."""
    return TABLE[:, list(target.I)].all(1) & ~TABLE[:, list(target.J)].any(1)


def joint_classes() -> list[JointClass]:
    """All of one attribute or more that there are, whether a digit is in them or not."""
    targets = []
    for signs in itertools.product((1, -1, 0), repeat=len(NAMES)):
        I, J = ([k for k, sign in enumerate(signs) if sign == which] for which in (1, -1))
        if I:
            targets.append(JointClass(I, J))
    return targets


def check_assumption() -> list[JointClass]:
    """Says what perfect density ratios would draw of all joint classes; returns the whole ones that hold a digit.

    Of an image of a digit with attributes Y, labels drawn uniformly make the best D_r(c|x) = 1/|Y| for c in Y, and
    0 otherwise: the least over I and the greatest over J are then either 1/|Y| or 0, and differ where they should.
    """
    class_logits = (TABLE / TABLE.sum(1, keepdim=True)).log().clamp(min=-80)
    n = found = even = 0
    unevenness, whole = 1.0, []
    for target in joint_classes():
        weights = s2m_log_weight(class_logits, torch.zeros(10), target.I, target.J).exp()
        digits = digits_of(target)
        if not digits.any():
            continue
        n += 1
        found += bool(torch.equal(weights > 1e-9, digits))
        inside = weights[digits]
        even += bool(inside.max() < 1.001 * inside.min())
        unevenness = max(unevenness, float(inside.max() / inside.min()))
        if len(target.I) + len(target.J) == len(NAMES):
            whole.append(target)
    print(
        f"Of {len(joint_classes())} joint classes, {n} hold a digit. Perfect density ratios give weight to just\n"
        f"their digits in {found} of them; in {even} they weigh these digits alike. The other {n - even} leave\n"
        f"attributes open, and labels drawn uniformly weigh a digit by 1 / (number of its attributes): up to\n"
        f"{unevenness:.0f} to 1. {len(whole)} joint classes say something of all six attributes:"
    )
    for target in whole:
        print(f"  digit {title(target):<5}has {', '.join(NAMES[i] for i in target.I)}; nothing else")
    return whole


def title(target: JointClass) -> str:
    return ", ".join(str(digit) for digit in digits_of(target).nonzero()[:, 0].tolist())


def train_ratio(G: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> sf.DensityRatio:
    torch.manual_seed(seed)
    heads = sf.Heads(
        D_v=nn.Sequential(small_cnn(1, 16, dropout=0.3), nn.Linear(64, 1)),
        D_r=nn.Sequential(small_cnn(1, 64, dropout=0.3), nn.Linear(256, len(NAMES))),
    )
    fit = sf.DensityRatioFit(
        epochs, lr=3e-3, weight_decay=0.05, patience=epochs, holdout=0.1, augment=jitter, accelerator="cpu"
    )
    return sf.train_density_ratio(
        G, images, labels, heads=heads, fit=fit, n_classes=len(NAMES), seed=seed, progress=False
    )


def adaptation(sampler: sf.S2MSampler, target: JointClass, n: int, seed: int) -> AdaptationPath | None:
    """None where too few samples were found to fit a proposal to: the prior is kept."""
    try:
        return sampler.adapt(target.I, target.J, sf.Mixture(n_chains=n, max_steps=100), seed=seed)
    except AdaptationError:
        return None


def accuracy(result: S2MResult, judge: SVC) -> float:
    """Share of the chains that hold a digit of their joint class; a chain without a sample is a miss."""
    if not len(result.samples):
        return 0.0
    shown = judge.predict(result.samples.flatten(1).numpy())
    return float(digits_of(result.joint_class)[shown].sum()) / result.diagnostics.n_chains


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of the GAN")
    parser.add_argument("--epochs", type=int, default=60, help="of the classifiers")
    parser.add_argument("-n", type=int, default=300, help="chains per joint class, in adaptation too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("six_attributes.png"), metavar="PNG")
    args = parser.parse_args(argv)

    whole = check_assumption()
    pixels, digits = datasets.load_digits(return_X_y=True)
    pixels = (pixels / 8 - 1).astype(np.float32)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(single_positives(TABLE[digits].numpy(), seed=args.seed))

    judge = SVC(C=10, gamma=0.04)
    alike = (TABLE[cross_val_predict(judge, pixels, digits)] == TABLE[digits]).all(1).double().mean()
    judge.fit(pixels, digits)
    print(
        f"\nImages of different joint classes look different: the judge, cross-validated, tells {alike:.1%} apart."
    )

    decay = 1 - 4 / args.steps  # the weights' average is over the last quarter of the steps, as in the demo
    G = train_generator(images, steps=args.steps, decay=decay, seed=args.seed, accelerator="cpu", progress=False)
    ratio = train_ratio(G, images, labels, args.epochs, args.seed)
    print(f"\n{ratio.report}\n")

    sampler = sf.S2MSampler(G, ratio.clf, weight=WEIGHT)
    targets = [(target.I, target.J) for target in whole]
    with torch.no_grad():
        class_logits, _, validity = ratio.clf(images)
        drawn = judge.predict(G(torch.randn(5000, G.z_dim)).flatten(1).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # the table says it
        prior = sampler.sample_targets(targets, args.n, 200, seed=args.seed)
        paths = [adaptation(sampler, target, args.n, args.seed) for target in whole]
        adapted = [
            sampler.sample(*target, args.n, 200, proposal=path and path.mixture, seed=args.seed)
            for target, path in zip(targets, paths, strict=True)
        ]

    # proposal=Mixture() keeps the prior where it gives so many effective samples a proposal.
    served = sum(result.diagnostics.ess_per_proposal >= KEEP_PRIOR_ESS for result in prior)
    print(f"proposal=Mixture() would fit proposals to {len(whole) - served} of {len(whole)}; here all are fitted.")
    print(f"\n{'':<31}{'proposals from the prior':^32}  {'adapted proposals':^42}".rstrip())
    columns = f"{'accuracy':>10}{'ESS':>8}{'M':>6}{'none':>8}"
    print(f"{'digit':<8}{'share of G':>10}{'D_r on real':>13}{columns}  {columns}{'proposals':>10}")
    means = []
    for target, path, *results in zip(whole, paths, prior, adapted, strict=True):
        mine = digits_of(target)
        weights = s2m_log_weight(class_logits, validity, target.I, target.J, weight=WEIGHT)
        real = (weights > -torch.inf)[mine[digits]].double().mean()
        cells = []
        means.append([accuracy(result, judge) for result in results])
        for result, right in zip(results, means[-1], strict=True):
            d = result.diagnostics
            cells.append(
                f"{right:>10.3f}{d.ess_per_proposal:>8.3f}{d.max_weight_ratio:>6.0f}{d.chains_without_support:>8}"
            )
        print(f"{title(target):<8}{mine[drawn].double().mean():>10.3f}{real:>13.3f}{'  '.join(cells)}", end="")
        print(f"{path.proposals if path else 'not met':>10}")
    before, after = np.mean(means, axis=0)
    print(f"{'mean':<31}{before:>10.3f}{'':>24}{after:>10.3f}")

    worst = int(np.argmin([right for right, _ in means]))
    shown = torch.from_numpy(judge.predict(prior[worst].samples.flatten(1).numpy()))
    wrong = torch.bincount(shown[~digits_of(whole[worst])[shown]], minlength=10)
    found = ", ".join(f"{int(wrong[digit])} times {digit}" for digit in wrong.argsort(descending=True)[:3])
    print(f"the worst from the prior: asked for {title(whole[worst])}, of {args.n} chains the judge saw {found}")
    plot_samples({title(result.joint_class): result.samples.numpy() for result in adapted}, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
