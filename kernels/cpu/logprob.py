"""Log-probabilities on a processor. numpy counts what compares true; torch sums booleans ten times slower."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.row_sum import chunk_sums
from kernels.logprob import TopLogprobs


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> TopLogprobs:
    """See `kernels.logprob.top_logprobs`."""
    best = logits.amax(1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    mass = chunk_sums(torch.sub(logits, best).exp_()).cumsum(1)[:, -1:]
    log_mass = mass.log()  # float64: a row's last digits depend on nothing but the row
    top, top_ids = _top(logits, num_top)
    return TopLogprobs(
        chosen=((chosen - best) - log_mass)[:, 0].float(),
        ranks=_ranks(logits, chosen, token_ids),
        top_ids=top_ids,
        top=((top - best) - log_mass).float(),
    )


def _ranks(logits: Tensor, chosen: Tensor, token_ids: Tensor) -> Tensor:
    values, threshold = logits.numpy(), chosen.numpy()
    ranks = np.count_nonzero(values > threshold, axis=1) + 1
    equal = np.count_nonzero(values == threshold, axis=1)
    for row in np.flatnonzero(equal > 1):
        ranks[row] += np.count_nonzero(values[row, : int(token_ids[row])] == threshold[row])
    return torch.from_numpy(ranks)


def _top(logits: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """The greatest logits of each row and their ids, [R, K] both; of equal ones the lower ids, in order."""
    if num_top == 0:
        empty = logits.new_empty((logits.shape[0], 0))
        return empty, empty.long()
    # One more than asked for: if the next one equals the last, topk may have picked the wrong ones.
    values, ids = logits.topk(min(num_top + 1, logits.shape[1]), dim=1)
    last = values[:, num_top - 1]
    top, top_ids = values[:, :num_top].numpy(), ids[:, :num_top].numpy()
    if values.shape[1] > num_top:
        for row in (values[:, num_top] == last).nonzero()[:, 0].tolist():
            tied = top[row] == top[row, -1]
            found = np.flatnonzero(logits[row].numpy() == top[row, -1])
            top_ids[row, tied] = found[: int(tied.sum())]
    order = np.lexsort((top_ids, -top))
    return (
        torch.from_numpy(np.take_along_axis(top, order, 1)),
        torch.from_numpy(np.take_along_axis(top_ids, order, 1)),
    )
