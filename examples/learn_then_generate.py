"""One set of single positive labels, both halves: a multi-label classifier, which then steers a generator.

    pip install ".[train]" && spml-fast demo && python examples/learn_then_generate.py spml_fast_demo

The demo has trained a generator on digits and classifiers for sampling, from one label per image. Here the same
labels train a multi-label classifier. It takes the place of D_r in the sampler, and then judges what was drawn;
the demo's judge, which knows the full labels, has the last word on both.
"""

import sys

import torch

import spml_fast as sf
from spml_fast.data import MultiLabelData
from spml_fast.data.digits import ATTRIBUTES, JOINT_CLASSES, joint_class_name, load_digits
from spml_fast.demo import load_demo
from spml_fast.labels import single_positives


def main(folder: str) -> None:
    G, clf, judge = load_demo(folder)
    digits = load_digits()
    images = torch.from_numpy(digits.images)
    observed = torch.from_numpy(single_positives(digits.labels, seed=0))

    # Learn: an image, one attribute of it; the convolutions of the demo's D_r are the trunk.
    trunk = torch.nn.Sequential(*list(clf.D_r)[:-1])
    result = sf.train_classifier(
        MultiLabelData(images, torch.from_numpy(digits.labels), observed, ATTRIBUTES),
        loss="role",
        linear=sf.LinearPhase(lr=1e-2, batch_size=16, epochs=10),
        finetune=sf.FineTuning(trunk, lr=1e-4),
        seed=0,
    )
    print(f"recovered labels: mAP {100 * result.metrics['recovery']['map']:.1f} from one label per image")

    # Generate: the classifier in the place of D_r, the demo's D_v beside it.
    ratio = sf.MultiLabelDensityRatio(result.model, lambda x: clf(x)[-1])
    drawn = sf.S2MSampler(G, ratio).sample_targets(JOINT_CLASSES, 500, 200, seed=0)

    print(f"{'joint class':<12}{'says the classifier':>21}{'says the judge':>16}")
    for digit, samples in enumerate(drawn):
        I, J = samples.joint_class.I, samples.joint_class.J
        has = result.predict_proba(samples.samples) > 0.5
        agreed = has[:, I].all(1) & ~has[:, J].any(1)
        shown = judge(samples.samples).argmax(1) == digit
        print(f"{joint_class_name(I, J):<12}{agreed.float().mean():>21.3f}{shown.float().mean():>16.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "spml_fast_demo")
