"""PyTorch's side of products of matrices on CUDA, for `benches/gpu`.

    python3 benches/peers/matmul.py                  # 8192 x 8192 x 8192 in bf16, alone
    gpu --device cuda:0 --part bf16 --torch "python3 benches/peers/matmul.py --on-request"

With --on-request it first prints {"torch": VERSION} and then answers every line such as

    {"m": 8192, "n": 8192, "k": 8192, "dtype": "bf16", "count": 10}

with {"seconds": S}: the time until the device is done with so many products of operands between -1 and 1.
"""

import argparse
import json
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("PyTorch is absent; pip install torch")
if not torch.cuda.is_available():
    sys.exit(f"PyTorch {torch.__version__} finds no CUDA device")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Products:
    """Operands and results, kept for the size that was asked for last."""

    def __init__(self) -> None:
        self.key = None

    def run(self, m: int, n: int, k: int, dtype: str, count: int) -> float:
        if self.key != (m, n, k, dtype):
            torch.manual_seed(0)
            operand = lambda rows, columns: torch.empty(
                (rows, columns), dtype=DTYPES[dtype], device="cuda").uniform_(-1, 1)
            self.lhs, self.rhs = operand(m, k), operand(k, n)
            self.out = torch.empty((m, n), dtype=DTYPES[dtype], device="cuda")
            self.key = (m, n, k, dtype)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            torch.mm(self.lhs, self.rhs, out=self.out)
        torch.cuda.synchronize()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on-request", action="store_true", help="answer requests on standard input")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--count", type=int, default=20, help="products of a measurement")
    arguments = parser.parse_args()
    products = Products()
    # Sums of bf16 in f32, as Halite's; PyTorch's default may round them in between.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if not arguments.on_request:
        size, dtype, count = arguments.size, arguments.dtype, arguments.count
        products.run(size, size, size, dtype, 3)
        seconds = products.run(size, size, size, dtype, count) / count
        print(f"{dtype} {size} x {size} x {size}: {seconds * 1e3:.3f} ms, {2e-12 * size**3 / seconds:.1f} TFLOP/s")
        return
    name = f"{torch.__version__} on {torch.cuda.get_device_name()}"
    print(json.dumps({"torch": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": products.run(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
