"""Every rank holds the whole model and averages gradients with the others while the backward pass goes on."""

import contextlib
from collections.abc import Iterator, Mapping

import torch.distributed as dist
from torch import Tensor, nn

from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train.config import TrainConfig
from hotplate.train.engines.base import weights_type
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.saving import shared_out
from hotplate.train.shares import Replicated
from hotplate.train.step import Backward, Precision
from hotplate.train.tensor_files import Piece


class LateExchange(Optimizer):
    """Averages gradients over ranks as it makes an update, when all of them have theirs: a rank that runs out of memory
    in a backward pass leaves no other waiting in its own."""

    def gather(self, last: bool) -> None:
        super().gather(False)  # sums over ranks are fp32

    def step(self, lr: float, scale: Tensor, veto: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gradients = list(self.gradients().values())
        for exchanged in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            exchanged.wait()
        for gradient in gradients:
            gradient /= dist.get_world_size()
        return super().step(lr, scale, veto)


class DDP:
    """torch's DistributedDataParallel; alone, the model itself."""

    def __init__(self, model: ModelConfig, config: TrainConfig, ranks: Ranks, precision: Precision) -> None:
        self._model = LanguageModel.build(model, config.seed, ranks.device, weights_type(precision))
        self._model.execute(compiled=config.execution.compile, recompute=config.execution.recompute)
        self._ranks = ranks
        shares = Replicated(ranks.rank, ranks.world) if ranks.world > 1 else None
        late = ranks.world > 1 and config.guard.out_of_memory == "halve"
        self.optimizer = (LateExchange if late else Optimizer)(self._model, config.optimizer, shares)
        self.module: nn.Module = self._model
        if ranks.world > 1 and not late:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(self._model, device_ids=ids, broadcast_buffers=False)

    @contextlib.contextmanager
    def exchange(self, last: bool) -> Iterator[Backward]:
        """Gradients are exchanged once per update, in the last backward pass; narrow ones in every pass, since each
        pass moves them into the fp32 masters."""
        if last or self.optimizer.narrow or not isinstance(self.module, nn.parallel.DistributedDataParallel):
            yield Tensor.backward
        else:
            with self.module.no_sync():
                yield Tensor.backward

    def pieces(self) -> dict[str, dict[str, Piece]]:
        model, optimizer = self._model.state_dict(), self.optimizer.state_dict()
        return {"model": shared_out(model, self._ranks), "optimizer": shared_out(optimizer, self._ranks)}

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, partly: bool = False) -> None:
        self.optimizer.load_weights(weights)
        self.optimizer.load_state_dict(state, partly=partly)

    def whole(self) -> LanguageModel | None:
        return self._model if self._ranks.main else None

    def everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.optimizer.weights(), self.optimizer.state_dict()
