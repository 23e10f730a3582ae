# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""torch's compiler on a simulated device: what Inductor makes of a layer, in kernels that compute nothing.

Capture, decompositions, partition, fusion and the code around the kernels are torch's own, with its defaults. In the
place of each Triton kernel, for which a GPU and Triton would be needed, stands one that tells the device what it would
read and write: Inductor's own estimate, which counts each of its arguments once. Products and attention are calls of
torch in that code, and counted as they are without a compiler; so is the memory that the code takes and gives back.
"""

import dataclasses
import types
from typing import Any

import torch
import torch._inductor.config as inductor_config
import torch._inductor.scheduler
import torch.utils._triton
from torch._C._dynamo import eval_frame
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.codecache import CacheBase
from torch._inductor.codegen.common import init_backend_registration, register_backend_for_device
from torch._inductor.codegen.triton import TritonScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import aggregate_origins
from torch._inductor.virtualized import V

from benchmarks.simulated_gpu.device import LeftOnTheHost, SimulatedDevice
from benchmarks.simulated_gpu.records import here
from benchmarks.simulated_gpu.roofline import fused_kind

_CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class FusedKernel:
    """A kernel that Inductor has made of several operations.

    Attributes:
        name: "fused" and torch's names of the operations.
        kind: Its class in the table.
        bytes: Read and written in a launch.
        dtypes: Of its tensors, each once.
        device: That it tells of its launches.
    """

    name: str
    kind: str
    bytes: int
    dtypes: tuple[str, ...]
    device: SimulatedDevice

    def run(self, *_: object, **__: object) -> None:
        """A launch."""
        self.device.launch(self.name, self.kind, self.bytes, self.dtypes)


class _Wrapper(PythonWrapperCodegen):
    """The code around the kernels, without what it would import for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: dict[str, FusedKernel] = {}

    @staticmethod
    def create(*_: Any, **__: Any) -> "_Wrapper":
        return _Wrapper()

    def write_triton_header_once(self) -> None:
        pass

    def write_get_raw_stream_header(self) -> None:
        pass


def install(device: SimulatedDevice) -> None:
    """Makes torch.compile work for tensors of the simulated device. It stays for the rest of the process.

    Args:
        device: The device, which is in the place of CUDA already.
    """

    class Scheduling(TritonScheduling):
        def define_kernel(self, src_code: str, node_schedule: Any, kernel: Any) -> str:
            wrapper: Any = V.graph.wrapper_code
            name = f"fused_{wrapper.next_kernel_suffix()}"
            wrapper.kernels[name] = _kernel(node_schedule, kernel, device)
            return name

    # The dispatch mode, and what it calls, is nothing to be compiled.
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    eval_frame.set_code_exec_strategy(SimulatedDevice.__torch_dispatch__.__code__, skip)
    for name, value in list(vars(CudaInterface).items()):  # it holds functions of CUDA as they were
        if isinstance(value, staticmethod) and hasattr(torch.cuda, name):
            setattr(CudaInterface, name, staticmethod(getattr(torch.cuda, name)))
    system = {"device": {"name": "simulated"}, "version": {}, "hash": "simulated"}
    replaced: tuple[tuple[Any, str, Any], ...] = (
        (torch._inductor.scheduler, "has_triton", lambda *_: True),
        (torch.utils._triton, "triton_hash_with_backend", lambda: "simulated"),
        (CacheBase, "get_system", staticmethod(lambda: system)),
        (UniformValueConstantFolder, "_deduce_value", _folded_on_the_host(UniformValueConstantFolder._deduce_value)),
        (GraphLowering, "compile_to_module", _module_of),
    )
    for owner, name, value in replaced:
        setattr(owner, name, value)
    init_backend_registration()
    register_backend_for_device("cuda", Scheduling, _Wrapper)
    inductor_config.force_disable_caches = True  # these kernels are of this process alone
    inductor_config.compile_threads = 1


def _kernel(node_schedule: Any, kernel: Any, device: SimulatedDevice) -> FusedKernel:
    with V.set_kernel_handler(kernel):
        size = int(kernel.estimate_kernel_num_bytes())
    buffers = [each for each in kernel.args.python_argdefs()[1] if V.graph.try_get_buffer(str(each)) is not None]
    dtypes = dict.fromkeys(str(V.graph.get_dtype(each)).removeprefix("torch.") for each in buffers)
    matrices = all(len(V.graph.get_buffer(each).get_size()) == 2 for each in buffers)
    origins = aggregate_origins(node_schedule)
    originals = [node.meta.get("original_aten") for node in origins]
    names = sorted({each._overloadpacket.__name__ for each in originals if isinstance(each, torch._ops.OpOverload)})
    lines = "\n".join(node.stack_trace or "" for node in origins)
    kind = fused_kind(names, lines, matrices)
    return FusedKernel(" ".join(["fused", *names]), kind, size, tuple(dtypes), device)


def _folded_on_the_host(deduce: Any) -> Any:
    """Inductor would have the device compute the numbers of constants."""

    def deduced(folder: Any, node: Any) -> Any:
        given = node.kwargs
        node.kwargs = {name: value for name, value in given.items() if name != "device"}
        try:
            return deduce(folder, node)
        finally:
            node.kwargs = given

    return deduced


def _module_of(graph: GraphLowering) -> types.SimpleNamespace:
    """The code that calls a graph's kernels, as Inductor wrote it, with what takes and looks at memory replaced."""
    if "cpu" in graph.device_types:  # Inductor would write C++ for it
        left = [
            name for name, each in graph.graph_inputs.items() if getattr(each, "get_device", lambda: None)() == _CPU
        ]
        raise LeftOnTheHost(f"{here()}: a compiled graph has work for the CPU; its inputs there: {left}")
    code, _ = graph.codegen()
    wrapper: Any = graph.wrapper_code
    names: dict[str, Any] = dict(graph.constants)
    exec(compile(code.value, "<inductor>", "exec"), names)
    names |= wrapper.kernels
    names |= {
        "empty_strided_cuda": lambda *layout: torch.empty_strided(*layout[:2], dtype=layout[2], device="cuda:0"),
        "reinterpret_tensor": _reinterpreted,
        "copy_if_misaligned": lambda tensor: tensor,
        "get_raw_stream": lambda _: 0,
    }
    graph.cache_key, graph.cache_path, graph.cache_linemap = "", "", []
    return types.SimpleNamespace(call=names["call"], runner=names.get("runner"))


def _reinterpreted(tensor: torch.Tensor, size: Any, stride: Any, offset: int = 0) -> torch.Tensor:
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)
