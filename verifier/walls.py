"""The walls around a process that runs a program nobody has read: Landlock, seccomp and limits, by ctypes.

A process calls `enclose` on itself and can never undo it. Nothing here needs root, a container or a service;
the same calls work for root, for a normal user and inside ordinary containers, on x86-64 and 64-bit ARM.

  Landlock   reads only the interpreter, its libraries and a few harmless files; writes only its own folder
  seccomp    a list of allowed system calls; all others fail with EPERM: no new process, no exec, no socket,
             no ptrace, no signal to another process, no mount, no clock, no host name; chmod and utime do
             nothing
  limits     address space, size of one file, open files, processor time, no core file; no capability is kept

What they do not do: hide that a path exists (stat works everywhere), hide the machine's name and processor,
or stop side channels. Threads and the total size of the folder are counted from outside (supervisor.py).
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import site
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from functools import lru_cache

LIBC = ctypes.CDLL(None, use_errno=True)
EPERM, ENOSYS, ENOTSUP = 1, 38, 95
MEMORY = 3 << 30  # bytes of address space above what the process has when it is enclosed
FILE_SIZE = 64 << 20  # bytes of one file
OPEN_FILES = 256


def is_strict() -> bool:
    """Whether all the walls stand on this machine."""
    return landlock_abi() > 0 and has_seccomp()


def tier() -> str:
    """What this machine offers, in words; begins with "strict" where all the walls stand."""
    landlock = [f"landlock {landlock_abi()}"] if landlock_abi() else []
    seccomp = ["seccomp"] if has_seccomp() else []
    return f"{'strict' if is_strict() else 'weak'}: {', '.join([*landlock, *seccomp, 'rlimits'])}"


def enclose(folder: str, seconds: float, *readable: str) -> None:
    """Put the calling process behind the walls for good. It must have one thread.

    It may write in its folder alone, and read there, in the other folders that are named, and its libraries.
    """
    limit(seconds)
    drop_capabilities()
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if landlock_abi():
        restrict_files(folder, *readable)
    if ARCHITECTURE:
        restrict_calls(os.getpid())


def enclose_or_say(folder: str, seconds: float, strict: bool, *readable: str) -> str:
    """`enclose`; what is wrong where a wall could not be built.

    Without `strict` a missing wall is not wrong.
    """
    try:
        enclose(folder, seconds, *readable)
    except OSError as error:
        return f"a wall could not be built: {error}" if strict else ""
    return ""


# --- its folder and its open files --------------------------------------------------------------------------


def move_to(folder: str) -> None:
    """Make it and work in it from now on."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = folder


def keep_only(*fds: int) -> None:
    """Close every other open file; standard input, output and error lead nowhere."""
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in fds:
            with contextlib.suppress(OSError):
                os.close(int(name))


# --- resource limits and capabilities -----------------------------------------------------------------------


def limit(seconds: float) -> None:
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    # A backstop: the deadline is kept by the supervisor.
    processor = int(seconds * (os.cpu_count() or 1)) + 20
    for kind, value in (
        (resource.RLIMIT_AS, mapped + MEMORY),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    try:  # where memory runs out, this process goes first
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def drop_capabilities() -> None:
    """For root: keep only the right to read files of other owners, since a library may be theirs.

    Landlock stands anyway.
    """
    for capability in range(64):
        if capability != CAP_DAC_OVERRIDE:
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    kept = 1 << CAP_DAC_OVERRIDE if os.geteuid() == 0 else 0
    for wanted in (kept, 0):  # 0 where the container had taken even that one away
        header, sets = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", wanted, wanted, 0, 0, 0, 0)
        if LIBC.capset(header, sets) == 0:
            return


# --- Landlock: files ----------------------------------------------------------------------------------------

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = range(9)
REFER, TRUNCATE, IOCTL_DEV = 13, 14, 15
# How many file rights each version of Landlock knows; 16 since the fifth.
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}


def rights(*names: int) -> int:
    return sum(1 << name for name in names)


def landlock_abi() -> int:
    return max(0, LIBC.syscall(LANDLOCK_CREATE, None, 0, 1))


def restrict_files(folder: str, *readable: str) -> None:
    abi = landlock_abi()
    handled = (1 << RIGHTS.get(abi, 16)) - 1
    # all rights to files, to TCP ports (4), to abstract sockets and signals (6): denied but for these
    attributes = struct.pack("<QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = LIBC.syscall(LANDLOCK_CREATE, attributes, size, 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")

    def allow(path: str, wanted: int) -> None:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        if not os.path.isdir(path):
            wanted &= rights(READ_FILE, WRITE_FILE, TRUNCATE)
        rule = struct.pack("<Qi", wanted & handled, fd)
        if LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
        # These stay open: the kernel forgets files of /proc that nobody holds.
        if not path.startswith("/proc/self"):
            os.close(fd)

    for path in (*readable_paths(), *readable):
        allow(path, rights(READ_FILE, READ_DIR))
    for name in ("cmdline", "maps", "stat", "statm", "status"):  # TensorFlow aborts without the first
        allow(f"/proc/self/{name}", rights(READ_FILE))
    for path in ("/dev/null", "/dev/zero", "/dev/full"):
        allow(path, rights(READ_FILE, WRITE_FILE))
    allow(
        folder,
        rights(READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, REMOVE_DIR, REMOVE_FILE)
        | rights(MAKE_DIR, MAKE_REG, REFER),
    )
    if LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
    "/usr/share/fonts", "/usr/local/share/fonts", "/usr/share/locale", "/etc/fonts", "/etc/localtime",
    "/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat",
    "/sys/devices/system/cpu", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
)  # fmt: skip


@lru_cache  # the same for every program
def readable_paths() -> list[str]:
    """The standard library, installed packages, shared libraries; nothing of home, project or data."""
    paths = {*SYSTEM, *site.getsitepackages(), *sysconfig.get_paths().values()}
    for prefix in {sys.prefix, sys.base_prefix}:
        paths |= {os.path.join(prefix, name) for name in ("lib", "lib64", "share", "pyvenv.cfg")}
    paths |= set(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    whole = {"/", "/home", "/root", "/usr", os.path.expanduser("~"), sysconfig.get_path("data")}
    return sorted(path for path in paths if os.path.realpath(path) not in whole)


# --- seccomp: system calls ----------------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_SET_SECCOMP = 1, 15, 16, 21, 22
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_VMA = 23, 24, 38, 0x53564D41
CAP_DAC_OVERRIDE = 1
CLONE_THREAD = 0x10000

# (number in the audit system, which column of the tables below)
ARCHITECTURE = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}.get(platform.machine())
if sys.byteorder != "little" or struct.calcsize("P") != 8:
    ARCHITECTURE = None

# name: (x86-64, 64-bit ARM). What is not in this table is not allowed.
ALLOWED = {
    # files, as far as Landlock lets them
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "newfstatat": (262, 79), "fstat": (5, 80),
    "statx": (332, 291), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "faccessat": (269, 48),
    "faccessat2": (439, 439), "pipe2": (293, 59), "dup": (32, 23), "dup3": (292, 24), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "renameat": (264, 38), "renameat2": (316, 276), "mkdirat": (258, 34), "unlinkat": (263, 35),
    "readlinkat": (267, 78), "flock": (73, 32), "statfs": (137, 43), "fstatfs": (138, 44),
    "umask": (95, 166), "fadvise64": (221, 223), "close_range": (436, 436), "stat": (4, None),
    "lstat": (6, None), "access": (21, None), "pipe": (22, None), "dup2": (33, None),
    "getdents": (78, None), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "creat": (85, None), "unlink": (87, None), "readlink": (89, None),
    # memory and threads
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "membarrier": (324, 283),
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96),
    "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126), "getpriority": (140, 141),
    "get_mempolicy": (239, 236), "arch_prctl": (158, None),
    # signals to itself and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "pause": (34, None), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    # waiting
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd": (284, None), "eventfd2": (290, 19),
    "wait4": (61, 260), "waitid": (247, 95),
    # asking who and where it is
    "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getpgid": (121, 155),
    "getpgrp": (111, None), "getsid": (124, 156), "getresuid": (118, 148), "getresgid": (120, 150),
    "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163),
    "getcpu": (309, 168), "getrandom": (318, 278), "capget": (125, 90),
}  # fmt: skip
# These "do not exist", so that the C library falls back to a call whose arguments the filter can read.
ABSENT = {"clone3": (435, 435), "openat2": (437, 437), "epoll_pwait2": (441, 441)}
# These seem to succeed and do nothing (Landlock does not cover them): `shutil.copy` sets a mode.
PRETENDED = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
# Extended attributes and reserved space: "this file system has none". The C library then reserves space by
# writing; the real call fills a disk faster than anybody counts.
UNSUPPORTED = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "getxattr": (191, 8),
    "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11), "llistxattr": (195, 12),
    "flistxattr": (196, 13), "fallocate": (285, 47),
}  # fmt: skip
CHECKED = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25), "ioctl": (16, 29),
    "prctl": (157, 167), "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "open": (2, None),
    "openat": (257, 56),
}  # fmt: skip
# No F_SETOWN and F_SETSIG: with them the kernel itself would send a signal to another process.
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# Is it a terminal, how wide, how much to read, flags.
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

LOAD, EQUAL, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06  # operations of the kernel's packet filter
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000


def has_seccomp() -> bool:
    """Whether filters of system calls are to be had, for an architecture that the tables above know."""
    return bool(ARCHITECTURE) and LIBC.prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0 and seccomp_knows_errno()


def seccomp_knows_errno() -> bool:
    """SECCOMP_GET_ACTION_AVAIL; a kernel without filters has no such call."""
    number = {0: 317, 1: 277}[ARCHITECTURE[1]]
    return LIBC.syscall(number, 2, 0, ctypes.byref(ctypes.c_uint32(ERRNO))) == 0


def argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    """Load the lower or upper half of an argument of the system call."""
    return (LOAD, 0, 0, 16 + 8 * index + 4 * high)


def call_filter(pid: int) -> list[tuple[int, int, int, int]]:
    """The filter program: (operation, jump if true, jump if false, constant) per line."""
    machine, column = ARCHITECTURE
    allow, deny = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | EPERM)

    def one_of(values: Iterable[int]) -> list[tuple[int, int, int, int]]:
        """Allowed if the loaded word is one of these."""
        return [line for value in values for line in ((EQUAL, 0, 1, value), allow)] + [deny]

    # Reading and emptying at once: Landlock 1 and 2 let it pass.
    truncate, access_mode = os.O_TRUNC, os.O_ACCMODE
    rules = {
        "clone": [argument(0), (ANY_BIT, 0, 1, CLONE_THREAD), allow, deny],  # a thread, never a process
        # a signal to itself only, and neither KILL (it would look like the machine's doing) nor a forged
        # process group
        "kill": [argument(1), (EQUAL, 0, 1, signal.SIGKILL), deny, argument(0), *one_of([pid])],
        "tgkill": [argument(2), (EQUAL, 0, 1, signal.SIGKILL), deny, argument(0), *one_of([pid])],
        "fcntl": [argument(1), *one_of(FCNTL)],
        "ioctl": [argument(1), *one_of(IOCTL)],
        "prctl": [argument(0), *one_of((PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_READ, PR_SET_VMA))],
        # reading its own limits: the pid is 0 and the pointer to the new limits is null
        "prlimit64": [
            argument(0),
            (EQUAL, 1, 0, 0),
            deny,
            argument(2),
            (EQUAL, 1, 0, 0),
            deny,
            argument(2, True),
            *one_of([0]),
        ],
        "sched_setaffinity": [argument(0), *one_of([0])],
        "open": [argument(1), (AND, 0, 0, truncate | access_mode), (EQUAL, 0, 1, truncate), deny, allow],
        "openat": [argument(2), (AND, 0, 0, truncate | access_mode), (EQUAL, 0, 1, truncate), deny, allow],
    }
    number = (LOAD, 0, 0, 0)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL_PROCESS), number]
    for numbers in ALLOWED.values():
        if numbers[column] is not None:
            program += [(EQUAL, 0, 1, numbers[column]), allow]
    for table, code in ((ABSENT, ENOSYS), (PRETENDED, 0), (UNSUPPORTED, ENOTSUP)):
        for numbers in table.values():
            if numbers[column] is not None:
                program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ERRNO | code)]
    for name, numbers in CHECKED.items():
        if numbers[column] is not None:
            program += [(EQUAL, 0, len(rules[name]), numbers[column]), *rules[name]]
    return [*program, deny]


def restrict_calls(pid: int) -> None:
    lines = b"".join(struct.pack("<HBBI", *line) for line in call_filter(pid))
    program = ctypes.create_string_buffer(lines, len(lines))
    header = struct.pack("<HxxxxxxQ", len(lines) // 8, ctypes.addressof(program))
    if LIBC.prctl(PR_SET_SECCOMP, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
