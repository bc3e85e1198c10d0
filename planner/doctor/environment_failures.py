"""Failures of what surrounds the engine: processes, NCCL, containers, drivers, compilers, ports.

Sources of the sentences: PyTorch multiprocessing and ProcessGroupNCCL, NCCL 2.20 to 2.28, triton, uvicorn, vLLM 0.6 to
0.29 executor/*. tests/data/doctor has a log of each.
"""

from __future__ import annotations

from planner.doctor.failure import Edit, Failure, Step, fill, put

_SPAWN = Edit("env", "VLLM_WORKER_MULTIPROC_METHOD", "spawn")

ENVIRONMENT_FAILURES: tuple[Failure, ...] = (
    Failure(
        id="cuda_fork",
        title="CUDA re-initialised in a forked process",
        patterns=(r"Cannot re-initialize CUDA in forked subprocess",),
        bottleneck="environment",
        cause="The process had touched CUDA before vLLM forked its workers (a host program such as Xinference, "
        "an import "
        "that counts GPUs, a notebook). A forked child cannot use CUDA again; a spawned one can. Memory has no "
        "part in it.",
        cure=(
            Step("spawn the workers", (_SPAWN,)),
            Step(
                "from Python, start the engine under `if __name__ == '__main__':`, since spawned workers import "
                "the script "
                "again; for Xinference set the variable where xinference-local (the supervisor and each worker) "
                "starts"
            ),
        ),
    ),
    Failure(
        id="nccl_shm",
        title="a container with too little shared memory for NCCL",
        patterns=(
            r"Error while (?:creating|attaching to) shared memory segment /dev/shm/\S+(?: \(size "
            r"(?P<segment>\d+)\))?",
            r"NCCL WARN Call to posix_fallocate failed ?: No space left on device",
            r"unable to (?:open|allocate) shared memory|DataLoader worker .* Bus error|Bus error \(core dumped\)",
        ),
        bottleneck="environment",
        cause="Ranks of one machine talk through /dev/shm, which is 64 MiB in a container unless it is given more.",
        facts=("A segment of {segment} bytes could not be made.",),
        cure=(
            Step(
                "docker run --ipc=host, or --shm-size=16g; in Kubernetes an emptyDir of medium Memory mounted "
                "at /dev/shm"
            ),
        ),
    ),
    Failure(
        id="nccl_timeout",
        title="a collective operation of NCCL that never ended",
        patterns=(
            r"Watchdog caught collective operation timeout: WorkNCCL\(SeqNum=\d+, "
            r"OpType=(?P<operation>\w+).*?ran for (?P<waited_ms>\d+) milliseconds",
        ),
        bottleneck="environment",
        cause="One rank waits for another. At the first operation the cards cannot reach each other (peer "
        "access over PCIe "
        "that IOMMU, ACS or a virtual machine breaks, as on consumer cards); later, a rank died or stalled: "
        "look for its error.",
        facts=("{operation} waited {waited_ms} ms.",),
        cure=(
            Step(
                "no peer access over PCIe",
                (Edit("env", "NCCL_P2P_DISABLE", "1"), put("--disable-custom-all-reduce", "")),
            ),
            Step("NCCL_DEBUG=TRACE shows where it stops; in a virtual machine or with IOMMU on, ACS must be off"),
        ),
        severity="symptom",
    ),
    Failure(
        id="nccl_error",
        title="NCCL failed",
        patterns=(
            r"NCCL error(?: in)?:.*?(?P<nccl>unhandled (?:system|cuda) error|internal error|invalid "
            r"usage|remote process exited)",
            r"NCCL error: (?P<nccl>unhandled \w+ error)",
        ),
        bottleneck="environment",
        cause="A system call or a driver call of NCCL failed; which one is told only with NCCL_DEBUG=INFO.",
        facts=("NCCL says: {nccl}.",),
        cure=(
            Step("run again with NCCL_DEBUG=INFO and give that log", (Edit("env", "NCCL_DEBUG", "INFO"),)),
            Step("the usual reasons: /dev/shm too small, the wrong NCCL_SOCKET_IFNAME, a rank that ran out of memory"),
        ),
        severity="symptom",
    ),
    Failure(
        id="kernel_image",
        title="a build of vLLM or PyTorch without code for this card",
        patterns=(
            r"no kernel image is available for execution on the device",
            r"is not compatible with the current PyTorch installation",
            r"The NVIDIA driver on your system is too old \(found version (?P<driver>\d+)\)",
        ),
        bottleneck="environment",
        cause="The installed binaries were compiled for other compute capabilities than the card's, or the "
        "driver is older "
        "than their CUDA.",
        cure=(
            Step(
                "wheels or an image for this card: a newer release for a new card, an older one for cards below "
                "7.0, or build from source"
            ),
            Step("a driver at least as new as the CUDA that PyTorch was built with"),
        ),
    ),
    Failure(
        id="triton_shared_memory",
        title="a kernel that needs more shared memory than a multiprocessor has",
        patterns=(
            r"out of resources?: shared memory, Required: (?P<required>\d+), Hardware limit: "
            r"(?P<hardware>\d+)",
        ),
        bottleneck="environment",
        cause="A Triton kernel is tuned for larger cards. This is on-chip memory of the card's multiprocessors: "
        "no memory "
        "option of vLLM changes it.",
        facts=("{required} bytes needed, {hardware} there.",),
        cure=(
            Step(
                "another attention backend or quantization kernel (--attention-backend), or a release where the "
                "kernel is tuned for the card"
            ),
        ),
    ),
    Failure(
        id="compiler_missing",
        title="no C compiler or Python headers for compiled kernels",
        patterns=(
            r"Failed to find C compiler",
            r"fatal error: Python\.h: No such file or directory",
            r"InvalidCxxCompiler",
        ),
        bottleneck="environment",
        cause="Triton and torch.compile build small extensions at startup.",
        cure=(
            Step("install a compiler and the headers of this Python (gcc or clang, python3-dev)"),
            Step("or do without compilation, more slowly: --enforce-eager (Triton kernels still need the compiler)"),
        ),
    ),
    Failure(
        id="port_taken",
        title="the port is taken",
        patterns=(
            r"error while attempting to bind on address \('(?P<host>[^']*)', (?P<port>\d+)\)",
            r"\[Errno 98\] Address already in use",
            r"EADDRINUSE",
        ),
        bottleneck="environment",
        cause="Another process listens there, often an earlier vLLM that still runs and holds the card as well.",
        facts=("Port {port} on {host}.",),
        cure=(
            Step("end that process (`ss -ltnp` names it)"),
            Step("or another port", (put("--port", "{port_next}"),)),
        ),
    ),
    Failure(
        id="host_memory_killed",
        title="the host ran out of memory and a process was killed",
        patterns=(
            r"worker died \(-9\)",
            r"killed by SIGKILL by OOM killer",
            r"died with <Signals\.SIGKILL: 9>",
            r"(?:exit ?code:? ?|exitcode[ =])-9\b",
            r"(?m)^Killed$",
            r"oom-kill:|Out of memory: Killed process",
        ),
        bottleneck="environment",
        cause="Signal 9 on a process that loads weights is nearly always the kernel's out-of-memory killer or a "
        "container "
        "limit: host memory, not the card's.",
        cure=(
            Step("more host memory for the machine, container or pod (a checkpoint is read through it, once per rank)"),
            Step("a smaller processor cache", (fill("--mm-processor-cache-gb", "1"),)),
        ),
        severity="symptom",
    ),
    Failure(
        id="engine_stalled",
        title="the engine waits for a worker that does not answer",
        patterns=(r"No available shared memory broadcast block found in \d+ seconds",),
        bottleneck="environment",
        cause="A rank is busy or stuck. While kernels compile or weights load this passes; without end it is a "
        "hang: cards "
        "that cannot reach each other, or a rank that died without a word.",
        cure=(
            Step(
                "wait a few minutes at the first start; with no progress, rule out peer access",
                (Edit("env", "NCCL_P2P_DISABLE", "1"), put("--disable-custom-all-reduce", "")),
            ),
        ),
        severity="warning",
    ),
    Failure(
        id="engine_died",
        title="the engine died, and the text does not say why",
        patterns=(
            r"Engine core initialization failed\. See root cause above",
            r"EngineCore encountered an issue\. See stack trace",
            r"Worker proc \S+ died unexpectedly",
            r"(?:AsyncEngineDeadError|MQEngineDeadError|EngineDeadError)",
            r"Engine process failed to start",
            r"Segfault encountered",
        ),
        bottleneck="environment",
        cause="This is the message of the parent process. The reason is in what the engine or a worker printed "
        "before it.",
        cure=(Step("give the whole log from its first line; VLLM_LOGGING_LEVEL=DEBUG if that has no reason either"),),
        severity="symptom",
    ),
)
