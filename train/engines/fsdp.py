"""Every rank holds a share of weights, gradients and optimiser state: torch's `fully_shard` (FSDP2).

Each block's weights are gathered before they are used and freed afterwards; gradients are summed into the shares in
fp32, in every micro-batch, so that nothing is ever held whole for longer than a block needs it. In bf16 the shares are
the fp32 master weights. With `engine.replicas` each of so many groups of ranks shards the whole model (hybrid
sharding): weights travel within a group, only gradients between groups.
"""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from hotplate.model.axes import parameter_axes
from hotplate.model.config import ModelConfig
from hotplate.model.init import initial_values
from hotplate.model.lm import LanguageModel
from hotplate.train.config import TrainConfig
from hotplate.train.engines.base import empty_model, weights_type
from hotplate.train.errors import InputError
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.shares import Sharded
from hotplate.train.step import Backward, Precision, at_once
from hotplate.train.tensor_files import Piece


class FSDP:
    """A model in shares, and an optimiser that works on them."""

    def __init__(self, model: ModelConfig, config: TrainConfig, ranks: Ranks, precision: Precision) -> None:
        """InputError when the replicas do not divide the ranks."""
        replicas, world = config.engine.replicas, ranks.world
        if world % replicas:
            legal = [n for n in range(1, world + 1) if world % n == 0]
            raise InputError(f"--engine.replicas {replicas} does not divide {world} ranks; use one of {legal}")
        self._config, self._ranks, self._precision = model, ranks, precision
        self._replicas, self._replica = replicas, ranks.rank // (world // replicas)
        mesh = init_device_mesh(ranks.device.type, (replicas, world // replicas), mesh_dim_names=("replica", "share"))
        narrow = torch.bfloat16 if precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
        over = mesh if replicas > 1 else mesh["share"]
        self.module: LanguageModel = empty_model(model)
        for block in self.module.blocks:
            fully_shard(block, mesh=over, mp_policy=policy, reshard_after_forward=config.engine.reshard)
        fully_shard(self.module, mesh=over, mp_policy=policy)
        self.module.to_empty(device=ranks.device)
        self._shares = Sharded(mesh["share"].get_group())
        self.optimizer = Optimizer(self.module, config.optimizer, self._shares)
        for name, value in initial_values(empty_model(model), model, config.seed):
            self.optimizer.load_weight(name, {name: value})

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Backward]:
        return at_once(last)

    def pieces(self) -> dict[str, dict[str, Piece]]:
        """Replicas take turns, tensor by tensor; numbers are the main rank's."""
        model, optimizer = self.optimizer.weight_pieces(), self.optimizer.pieces()
        names = {name: number for number, name in enumerate([*model, *optimizer])}

        def mine(name: str, piece: Piece) -> bool:
            return names[name] % self._replicas == self._replica if piece.shape else self._ranks.main

        return {
            part: {name: piece for name, piece in found.items() if mine(name, piece)}
            for part, found in (("model", model), ("optimizer", optimizer))
        }

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], *, partly: bool = False) -> None:
        self.optimizer.load_weights(weights)
        self.optimizer.load_state_dict(state, partly=partly)

    def whole(self) -> LanguageModel | None:
        found = None
        if self._ranks.main:
            dtype = weights_type(self._precision)
            found = empty_model(self._config).to(dtype).to_empty(device=self._ranks.device)
        places = {} if found is None else {name: p for name, (p, _) in parameter_axes(found).items()}
        with torch.no_grad():
            for name, piece in self.optimizer.weight_pieces().items():
                value = self._shares.whole(piece.data, piece.shape)
                if found is not None:
                    places[name].copy_(value)
        return found

    def everything(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights, state = self.optimizer.weight_pieces(), self.optimizer.pieces()
        first, second = (
            {name: self._shares.whole(piece.data, piece.shape) for name, piece in found.items()}
            for found in (weights, state)
        )
        return first, second
