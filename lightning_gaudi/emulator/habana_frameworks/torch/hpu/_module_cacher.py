"""``ModuleCacher``: training graphs for a module, one for each kind of call.

From bridge 1.19.0, ``hpu/graphs.py``: the key is `input_hash` of all the forward's arguments,
defaults included, so its flaws are this one's too. Evaluation, calls without gradients and calls
beyond `max_graphs` run op by op.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from habana_frameworks.torch.hpu._graphed_callables import make_graphed_callables
from habana_frameworks.torch.hpu._tensor_packer import TensorPacker
from habana_frameworks.torch.hpu._wrapping import input_hash, is_tensor_cache_disabled
from torch import nn

from lightning_gaudi.emulator.mode import is_lazy


class GraphModel(nn.Module):
    """A module that takes tensors only, around one that takes and gives anything nested.

    Args:
        model: The module; wrapped in no parallel module.
        allow_unused_input: As for `make_graphed_callables`, like the ones that follow.
        asynchronous: Passed on to each replay.
        disable_tensor_cache: Whether inputs are bound at each replay.
        dry_run: Whether the captures are dry runs.

    Raises:
        AssertionError: The module is a parallel one, or its forward has arguments that have no
            name to give them by.
    """

    def __init__(
        self,
        model: nn.Module,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        disable_tensor_cache: bool = False,
        dry_run: bool = False,
    ) -> None:
        super().__init__()
        assert not isinstance(
            model, (nn.parallel.DataParallel, nn.parallel.DistributedDataParallel)
        ), "Use DataParallel/DistributedDataParallel only after wrapping with ModuleCacher"
        self.model = model
        self.input_packer = TensorPacker()
        self.input_meta: Any = None
        self.output_packer = TensorPacker(is_out_pack=True)
        self.output_meta: Any = None
        self.func_parameters = self.process_function_signature(model.forward)
        self.allow_unused_input = allow_unused_input
        self.asynchronous = asynchronous
        self.disable_tensor_cache = disable_tensor_cache
        self.dry_run = dry_run

    def forward(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """Run the module on these tensors and what else the captured call had."""
        outs = self.model(**self.input_packer.unpack(args, self.input_meta))
        tensors: tuple[torch.Tensor, ...]
        tensors, self.output_meta = self.output_packer.pack(outs)
        return tensors

    def graph_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Replay for a call; what is no tensor among its arguments is not looked at."""
        tensors, _ = self.input_packer.pack(
            self.get_full_args(self.func_parameters, *args, **kwargs)
        )
        return self.output_packer.unpack(self.hpu_graph(*tensors), self.output_meta)

    def init_hpu_graph(self, *args: Any, **kwargs: Any) -> None:
        """Capture for a call."""
        full_args = self.get_full_args(self.func_parameters, *args, **kwargs)
        self.input_id = input_hash(full_args)
        tensors, self.input_meta = self.input_packer.pack(full_args)
        self.hpu_graph = make_graphed_callables(
            self,
            tensors,
            allow_unused_input=self.allow_unused_input,
            asynchronous=self.asynchronous,
            disable_tensor_cache=self.disable_tensor_cache,
            dry_run=self.dry_run,
        )

    @staticmethod
    def process_function_signature(function: Callable[..., Any]) -> OrderedDict[str, Any]:
        """The names of a function's arguments with their defaults; ``**kwargs`` is left out."""
        parameters: OrderedDict[str, Any] = OrderedDict()
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.kind not in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.VAR_POSITIONAL,
            ), f"Unsupported argument type : {parameter.kind}"
            if parameter.kind == inspect.Parameter.VAR_KEYWORD:
                print("[WARNING] Variable keyword arguments will not be supported.")
                continue
            parameters[name] = parameter.default
        return parameters

    @staticmethod
    def get_full_args(
        forward_params: OrderedDict[str, Any], *args: Any, **kwargs: Any
    ) -> OrderedDict[str, Any]:
        """Every argument of a call by name, defaults included."""
        full_args = copy.copy(forward_params)
        full_args.update(zip(full_args, args, strict=False))
        full_args.update(kwargs)
        return full_args

    @staticmethod
    def full_input_hash(forward_params: OrderedDict[str, Any], *args: Any, **kwargs: Any) -> int:
        """The key of a call."""
        key: int = input_hash(GraphModel.get_full_args(forward_params, *args, **kwargs))
        return key


class ModuleCacher(nn.Module):
    """Gives a module a forward that trains through graphs: ``ModuleCacher(10)(model)``.

    Args:
        max_graphs: How many graphs are kept.
    """

    def __init__(self, max_graphs: int = 10) -> None:
        super().__init__()
        self.max_graphs = max_graphs
        self.model_dict: dict[int, GraphModel] = {}
        self.input_count_dict: dict[int, int] = {}
        self.priority_keys: list[int] = []
        self.is_capturing = False
        self.iteration_cnt = -1
        self.use_lazy_mode = is_lazy()
        self.hpugraph_tracing = False
        self.cached_hits_dict: dict[int, int] = {}
        self.uncached_train_hits = 0
        self.uncached_eval_hits = 0
        self.forward_cnt = 0
        self.set_iterations_call_cnt = 0
        self.disable_tensor_cache = False
        self.dry_run = False
        self.inplace = True
        self.verbose = False

    model: Any
    """The module whose forward was replaced."""

    def __call__(
        self,
        model: nn.Module,
        use_lfu: bool = False,
        inplace: bool = True,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        have_grad_accumulation: bool = False,
        log_frequency: int = 100,
        verbose: bool = False,
        disable_tensor_cache: bool = False,
        dry_run: bool = False,
    ) -> nn.Module:
        """Replace the forward of a module.

        Args:
            model: The module.
            use_lfu: Whether to capture only the kinds of call that were most frequent between
                ``model.capture_start()`` and ``model.capture_end()``.
            inplace: Whether the module itself is changed, rather than a shallow copy.
            allow_unused_input: As for `make_graphed_callables`.
            asynchronous: Passed on to each replay.
            have_grad_accumulation: Whether the first of several backwards gets graphs of its own;
                ``model.set_iteration_count(i)`` says which one comes.
            log_frequency: After how many calls `log_stats` is called.
            verbose: Whether it is called at all.
            disable_tensor_cache: Whether inputs are bound at each replay;
                ``PT_HPUGRAPH_DISABLE_TENSOR_CACHE`` overrides it.
            dry_run: Whether the captures are dry runs; ``PT_HPUGRAPH_ENABLE_DRY_RUN`` overrides it.

        Returns:
            The module, or the copy.
        """
        self.inplace = inplace
        if not inplace:
            model = copy.copy(model)
        # The copy has the parameters, and a forward that does not come back here.
        self.orig_model = copy.copy(model)
        self.forward_params = GraphModel.process_function_signature(self.orig_model.forward)
        # No submodule of this one: the module would hold itself.
        self.__dict__["model"] = model
        self.use_lfu = use_lfu
        self.allow_unused_input = allow_unused_input
        self.asynchronous = asynchronous
        self.have_grad_accumulation = have_grad_accumulation
        self.log_frequency = log_frequency
        self.verbose = verbose
        self.disable_tensor_cache = is_tensor_cache_disabled(disable_tensor_cache)
        env_dry_run = os.environ.get("PT_HPUGRAPH_ENABLE_DRY_RUN")
        self.dry_run = dry_run if env_dry_run is None else env_dry_run == "1"
        return self._attach(model)

    def _attach(self, model: Any) -> nn.Module:
        model.orig_forward = model.forward
        model.forward = self.forward_lfs if self.use_lfu else self.forward
        model.is_hpugraph_tracing = self.is_hpugraph_tracing
        model.set_iteration_count = self.set_iteration_count
        model.capture_start = self.capture_start
        model.capture_end = self.capture_end
        return model  # type: ignore[no-any-return]

    def set_iteration_count(self, iter_num: int) -> None:
        """Say which of several accumulated backwards comes; 0 is the first."""
        self.forward_cnt = iter_num
        self.set_iterations_call_cnt += 1

    def is_hpugraph_tracing(self) -> bool:
        """Whether a capture is being made."""
        return self.hpugraph_tracing

    def cache_replay(self, input_id: int, *args: Any, **kwargs: Any) -> Any:
        """Replay what was captured for a key."""
        self.cached_hits_dict[input_id] = self.cached_hits_dict.get(input_id, 0) + 1
        return self.model_dict[input_id].graph_forward(*args, **kwargs)

    def cache_insert(self, input_id: int, *args: Any, **kwargs: Any) -> Any:
        """Capture for a key, then replay."""
        self.hpugraph_tracing = True
        graph_model = GraphModel(
            self.orig_model,
            self.allow_unused_input,
            self.asynchronous,
            self.disable_tensor_cache,
            self.dry_run,
        )
        graph_model.init_hpu_graph(*args, **kwargs)
        self.model_dict[input_id] = graph_model
        result = self.cache_replay(input_id, *args, **kwargs)
        self.hpugraph_tracing = False
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward: a replay, a capture while there is room, or op by op."""
        input_id = self._next_key(args, kwargs)
        if self._may_use_graphs():
            if input_id in self.model_dict:
                return self.cache_replay(input_id, *args, **kwargs)
            if len(self.model_dict) < self.max_graphs:
                return self.cache_insert(input_id, *args, **kwargs)
        return self._run_eagerly(args, kwargs)

    def forward_lfs(self, *args: Any, **kwargs: Any) -> Any:
        """The same with ``use_lfu``: captures are for the most frequent kinds of call only."""
        input_id = self._next_key(args, kwargs)
        if self.is_capturing:
            self.record(input_id)
        elif self._may_use_graphs():
            if input_id in self.model_dict:
                return self.cache_replay(input_id, *args, **kwargs)
            if input_id in self.priority_keys:
                return self.cache_insert(input_id, *args, **kwargs)
        return self._run_eagerly(args, kwargs)

    def _next_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        self.iteration_cnt += 1
        input_id = GraphModel.full_input_hash(self.forward_params, *args, **kwargs)
        if self.have_grad_accumulation and self.forward_cnt == 0:
            input_id = input_hash((input_id, self.forward_cnt + 1))
        if self.verbose and self.iteration_cnt % self.log_frequency == 0:
            self.log_stats()
        return input_id

    def _may_use_graphs(self) -> bool:
        return bool(self.model.training and torch.is_grad_enabled() and self.use_lazy_mode)

    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.model.training:
            self.uncached_train_hits += 1
        else:
            self.uncached_eval_hits += 1
        return self.model.orig_forward(*args, **kwargs)

    def capture_start(self) -> None:
        """Begin to count kinds of call."""
        self.is_capturing = True

    def record(self, input_id: int) -> None:
        """Count a kind of call."""
        self.input_count_dict[input_id] = self.input_count_dict.get(input_id, 0) + 1

    def capture_end(self) -> None:
        """Choose the most frequent kinds of call since `capture_start`."""
        counts = self.input_count_dict
        self.priority_keys = sorted(counts, key=lambda key: counts[key], reverse=True)
        del self.priority_keys[self.max_graphs :]
        self.is_capturing = False
        if self.verbose:
            self.log_stats()
        self.input_count_dict = {}

    def log_stats(self) -> None:
        """Print what happened so far."""
        num_hits = sum(self.cached_hits_dict.values())
        lines = {
            "Max graphs": self.max_graphs,
            "LFU Cache": self.use_lfu,
            "Async execution config": self.asynchronous,
            "Grad accumulation config": self.have_grad_accumulation,
            "Set iteration calls": self.set_iterations_call_cnt,
            "No. of HPUGraphs cached": len(self.model_dict),
            "Priority keys": self.priority_keys,
            "Input hash v. cached hits": self.cached_hits_dict,
            "Total cached hits": num_hits,
            "Uncached train hits": self.uncached_train_hits,
            "Uncached eval hits": self.uncached_eval_hits,
            "Total forwards executed": num_hits
            + self.uncached_train_hits
            + self.uncached_eval_hits,
        }
        print("HPU Graph Statistics")
        for name, value in lines.items():
            print(f"    {name:25} :- {value}")
