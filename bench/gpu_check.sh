#!/usr/bin/env bash
# Builds, tests and measures spml-fast on a machine with an NVIDIA GPU, within ten minutes a call:
#
#     STEPS="build sanitize bench" bench/gpu_check.sh --quick        # arguments go to the benchmarks
#     STEPS="test" bench/gpu_check.sh                                # thousands of small tests: a call of their own
#
# Without STEPS all of them run, as far as time goes. Logs and results go to $OUT (default gpu_check_out). Every
# step runs, whatever became of the ones before it, as long as time is left of $BUDGET_S seconds; the last lines are
# the steps' return codes (124: out of time).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

OUT=${OUT:-gpu_check_out}
BUDGET_S=${BUDGET_S:-570}
STEPS=${STEPS:-build sanitize bench test}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
summary="$OUT/summary.txt"
: >"$summary"
failed=0

# step GROUP NAME SECONDS LOG COMMAND...: runs it for at most that long, or for what is left of the budget, if its
# group is among $STEPS.
step() {
  [[ " $STEPS " == *" $1 "* ]] || return 0
  shift
  local name=$1 limit=$2 log="$OUT/$3" left=$((BUDGET_S - SECONDS)) start=$SECONDS rc=124
  shift 3
  echo "== $name" | tee -a "$log"
  if ((left > 0)); then
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >>"$log" 2>&1
    rc=$?
  fi
  ((rc == 0)) || failed=1
  printf '%-24s rc=%-3d %4d s  %s\n' "$name" "$rc" "$((SECONDS - start))" "$(basename "$log")" | tee -a "$summary"
}

# A device's name as a file name.
device_file() {
  (cd bench && python3 -c "
import re, torch
from common import device_name
print(re.sub(r'[^A-Za-z0-9]+', '_', device_name(torch.device('$1'))).strip('_'))") || echo "$1"
}

# Installs what is in this folder; pip of a distribution's Python refuses without --break-system-packages.
build() {
  local log=$1
  export SPML_FAST_CUDA=1 # fail rather than build for the CPU alone
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())')} || return
  export TORCH_CUDA_ARCH_LIST
  echo "TORCH_CUDA_ARCH_LIST=$TORCH_CUDA_ARCH_LIST"
  python3 -m pip install --no-build-isolation --no-deps . && return
  grep -q externally-managed-environment "$log" || return
  python3 -m pip install --no-build-isolation --no-deps --break-system-packages .
}
export -f build

# Every CUDA kernel on sizes that leave remainders: chains % 32, steps % 8, targets % 8, dimensions % 4; rows of
# logits that are staged in shared memory and (200 classes) too long for it.
sanitized='
import torch
from spml_fast import JointClass, _ops
from spml_fast.sampling import ChainState, pack_targets

chains, steps = 37, 13
CASES = (
    (3, 1, torch.float32),
    (5, 3, torch.float64),
    (40, 9, torch.bfloat16),
    (70, 2, torch.float16),
    (200, 9, torch.float32),
)
for classes, n_targets, dtype in CASES:
    compute = _ops.compute_dtype(dtype)
    targets = pack_targets([JointClass((t % classes,), ((t + 1) % classes,)) for t in range(n_targets)], classes,
                           dtype=compute, device="cuda")
    state = ChainState.start(n_targets, chains, compute, "cuda")
    cpu = torch.Generator().manual_seed(0)
    logits, fake = (torch.randn(steps, chains, classes, generator=cpu).to("cuda", dtype) for _ in range(2))
    validity, correction = (torch.randn(steps, chains, generator=cpu).to("cuda") for _ in range(2))
    validity, correction = validity.to(dtype), correction.to(compute)
    for options in ({}, {"fake_class_logits": fake, "proposal_class": 1, "log_correction": correction}):
        state.scan_logits(logits, validity, targets, seed=1, **options)
    weights = _ops.s2m_log_weight(logits.flatten(0, 1), validity.flatten(), None, None, *targets, 0)
    state.scan(weights.reshape(n_targets, steps, chains), seed=1, first_step=steps)
    state.raise_if_invalid()
rows = torch.arange(chains, device="cuda")
for dtype in (torch.float32, torch.float64):
    _ops.philox_normal(rows, rows, 1, 81, dtype=dtype)
    _ops.philox_uniform(rows, rows, 1, dtype=dtype)

# Every loss: whole packs of 16 bytes and remainders, contiguous and not, both label forms, several blocks.
from spml_fast import losses
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for n, l in ((3, 7), (37, 81), (130, 1001)):
        compute = _ops.compute_dtype(dtype)
        index = torch.randint(0, l, (n,), device="cuda")
        rows = torch.randperm(n, device="cuda")
        matrix = torch.zeros(n, l, dtype=torch.int8, device="cuda").scatter_(1, index[:, None], 1)
        for z in (torch.randn(n, l, device="cuda").to(dtype), torch.randn(l, n, device="cuda").to(dtype).t()):
            z.requires_grad_()
            extra = {"epr": dict(expected_positives=2), "role": dict(expected_positives=2)}
            extra |= {name: dict(share=0.1) for name in ("ll_r", "ll_ct")}
            extra |= {"ll_cp": dict(n_samples=n, n_labels=l, share=0.1), "em_apl": dict(n_samples=n, n_labels=l)}
            for name in losses.registry:
                module = losses.make(name, **extra.get(name, {})).cuda()
                table = torch.randn(n, l, device="cuda", dtype=compute, requires_grad=True)
                more = {"iun": (matrix,), "role": (table, rows), "ll_cp": (rows,), "em_apl": (rows,),
                        "gpr": (matrix, rows)}.get(name, ())
                for labels in (matrix,) if name in ("bce", "bce_ls") else (index, matrix):
                    module(z, labels, *more).mul(2).backward()

# The step of a linear layer: tiles with remainders in every direction.
for dtype in (torch.float32, torch.float64):
    for n, k, d in ((1, 1, 1), (8, 20, 2049), (13, 77, 130)):
        states = [torch.zeros(k, d, device="cuda", dtype=dtype) for _ in range(3)]
        grad, x = (torch.randn(n, m, device="cuda", dtype=dtype) for m in (k, d))
        _ops.adam_linear_(*states, grad, x, torch.full((k,), 1e-3, device="cuda", dtype=dtype), 1)
torch.cuda.synchronize()
print("every kernel ran")
'
# Without the caching allocator each tensor is an allocation of its own, and a step past its end is seen.
sanitizer=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --target-processes all --error-exitcode 9)

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 2
  python3 -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)'
} 2>&1 | tee -a "$summary"

step build build 400 build.log bash -c 'build "$1"' build "$OUT/build.log"
# PyTorch's own start-up makes CUDA calls that fail by design; only what kernels do counts.
step sanitize memcheck 120 sanitizer.log "${sanitizer[@]}" --tool memcheck --report-api-errors no \
  python3 -c "$sanitized"
step sanitize racecheck 120 sanitizer.log "${sanitizer[@]}" --tool racecheck python3 -c "$sanitized"
gpu="$(device_file cuda).json"
cpu="$(device_file cpu).json"
step bench "losses, GPU" 200 bench.log python3 bench/loss_throughput.py --device cuda --compile gr \
  --json "$OUT/losses_$gpu" "$@"
step bench "sampling, GPU" 120 bench.log python3 bench/imh_throughput.py --device cuda --json "$OUT/imh_$gpu" "$@"
step bench "methods, GPU" 150 bench.log python3 bench/sampling_methods.py --device cuda \
  --json "$OUT/methods_$gpu" "$@"
step bench "adaptation, GPU" 60 bench.log python3 bench/adaptation.py --device cuda --json "$OUT/adaptation_$gpu" "$@"
step bench "training, GPU" 90 bench.log python3 bench/training_throughput.py --device cuda \
  --json "$OUT/training_$gpu" "$@"
step bench "losses, CPU" 90 bench.log python3 bench/loss_throughput.py --json "$OUT/losses_$cpu" --quick
step bench "sampling, CPU" 90 bench.log python3 bench/imh_throughput.py --json "$OUT/imh_$cpu" "$@"
step test tests 560 tests.log python3 -m pytest tests -q -p no:cacheprovider

for log in bench tests; do
  [[ ! -e "$OUT/$log.log" ]] || tail -n 80 "$OUT/$log.log"
done
echo
cat "$summary"
exit "$failed"
