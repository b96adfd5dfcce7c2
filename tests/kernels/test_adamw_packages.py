"""AdamW through apex's and DeepSpeed's fused Adam: their published class kept by stubs, the definition as the judge."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import updates

from hotplate.kernels import backends
from hotplate.kernels.adamw import adamw, packages, reference


class Stub(torch.optim.Optimizer):
    """The constructor and the step that both packages publish; one step counter per group, as apex has it."""

    per_tensor = False

    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
    ):
        assert isinstance(lr, float) and bias_correction and adam_w_mode and not amsgrad
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def step(self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None, grad_scaler=None):
        assert all(x is None for x in (closure, grads, output_params, scale, grad_norms, grad_scaler))
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            done = group["step"] - 1
            for p in group["params"]:
                state = self.state[p]
                if self.per_tensor:  # DeepSpeed counts in the state, of the group's last tensor
                    done = state["step"]
                assert isinstance(done, int) and p.grad.dtype == p.dtype == torch.float32
                one = torch.ones(())
                count = torch.tensor(float(done))
                moments = [state["exp_avg"]], [state["exp_avg_sq"]]
                options = (group["lr"], group["betas"], group["eps"], group["weight_decay"])
                reference.adamw([p.data], [p.grad], *moments, [count], None, *options, one, torch.zeros(()))


class PerTensor(Stub):
    per_tensor = True


STUBS = {"apex": Stub, "deepspeed": PerTensor}


@pytest.fixture(params=sorted(STUBS))
def package(request, monkeypatch):
    """The package's name, its class being a stub, on a machine that would serve it."""
    name = request.param
    for module in (name, *(".".join(packages.MODULES[name].split(".")[: n + 1]) for n in (1, 2))):
        made = ModuleType(module)
        made.__spec__ = ModuleSpec(module, None, is_package=True)
        made.FusedAdam = STUBS[name]
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.setattr(backends, "why_no_fused_adam", lambda package, device: None)
    return name


@pytest.mark.parametrize("skip", [-1, 2])
def test_updates_are_the_definitions(package, skip):
    (mine, first, second, steps), _ = updates.course(package, skip=skip)
    (want, m, v, counts), _ = updates.course("reference", skip=skip)
    for got, expected in zip([*mine, *first, *second, *steps], [*want, *m, *v, *counts], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_a_skipped_update_changes_nothing_and_copies_follow(package):
    (weights, *_), copies = updates.course(package, copies=torch.bfloat16, skip=1)
    for weight, copy in zip(weights, copies, strict=True):
        assert torch.equal(weight.to(torch.bfloat16), copy)


def test_tensors_of_different_ages_are_updated_by_their_own_count(package):
    def run(impl):
        weights = [torch.ones(5), torch.ones(3)]
        state = (
            [torch.zeros(5), torch.zeros(3)],
            [torch.zeros(5), torch.zeros(3)],
            [torch.tensor(0.0), torch.tensor(7.0)],
        )
        gradients = [torch.arange(5.0), torch.arange(3.0)]
        adamw(weights, gradients, *state, lr=0.01, scale=torch.ones(()), skipped=torch.zeros(()), impl=impl)
        return [*weights, *state[2]]

    for mine, want in zip(run(package), run("reference"), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(STUBS))
def test_a_package_that_cannot_serve_is_refused_with_the_reason(name, monkeypatch):
    w = [torch.ones(3)]
    state = [torch.zeros(3)], [torch.zeros(3)], [torch.zeros(())]
    options = {"lr": 0.1, "scale": torch.ones(()), "skipped": torch.zeros(()), "impl": name}
    with pytest.raises(
        ValueError, match=f"want a package that serves impl='{name}'.*(not installed|CUDA device)"
    ) as told:
        adamw(w, [torch.ones(3)], *state, **options)
    assert ("another project" in str(told.value)) == (name == "apex")
    with pytest.raises(ValueError, match="float32 weights"):
        wide = [torch.ones(3, dtype=torch.float64)]
        adamw(wide, [wide[0].clone()], [wide[0].clone()], [wide[0].clone()], [torch.zeros(())], **options)


def test_the_optimiser_takes_their_names():
    from hotplate.train.config import OptimizerConfig

    assert {OptimizerConfig(impl=name).impl for name in packages.MODULES} == set(backends.FUSED_ADAM)
