"""google-deepmind/mctx: its compiled search on the small model of the speed anchor."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from benchmarks.peers.line import Line


def main() -> None:
    """Compile the search that the order names, then run it once an order."""
    line = Line()
    order = line.start()
    threads = order["threads"]
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}")
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it has cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    jax: Any = importlib.import_module("jax")
    mctx: Any = importlib.import_module("mctx")
    np = jax.numpy
    weights = {name: np.asarray(value) for name, value in order["weights"].items()}
    embedding = np.asarray(order["embedding"])
    hidden = embedding.shape[1]

    def outputs(state: Any) -> tuple[Any, Any, Any]:
        out = state @ weights["heads"]
        return out[:, 0], out[:, 1], out[:, 2:]

    def recurrent(params: Any, key: Any, action: Any, state: Any) -> tuple[Any, Any]:
        seen = state @ weights["first"][:hidden] + weights["first"][hidden:][action] + weights["first_bias"]
        reached = np.tanh(jax.nn.relu(seen) @ weights["second"] + weights["second_bias"])
        reward, value, logits = outputs(reached)
        discount = np.full_like(reward, order["discount"])
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), reached

    choose = mctx.muzero_policy if order["policy"] == "muzero" else mctx.gumbel_muzero_policy

    @functools.partial(jax.jit)
    def run(key: Any, state: Any) -> Any:
        _, value, logits = outputs(state)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=state)
        found = choose((), key, root, recurrent, num_simulations=order["simulations"])
        return found.action, found.action_weights

    keys = iter(range(10**9))
    facts = {
        "parameters": sum(int(value.size) for value in weights.values()),
        "form": f"float32, jax {jax.__version__}",
        "unlike": "draws its noise inside the call",
    }
    line.serve(facts, lambda: jax.block_until_ready(run(jax.random.PRNGKey(next(keys)), embedding)))


if __name__ == "__main__":
    main()
