"""Linux namespaces and a small read-only root for programs, made by system calls. It works for root and other users.

    house = make_house(readable_layout())       # once: move into a root that holds only what programs may read
    enter_room(house, tmp_bytes=32 << 20)       # in a fork: namespaces of its own; its next child is pid 1 of one
    drop_capabilities()                         # in the process that becomes the program

The house is a user and a mount namespace that all programs share. Its root holds the interpreter's library directory
and the system's, without installed packages, five devices and an empty /tmp. It has no /proc, /sys, command or home.

A room is a further namespace of every kind for one program, with a /tmp of its own. Each user namespace counts its
processes separately. The limit on processes does not bind root, and outside a namespace it would count everything that
the user runs. So a room belongs to user 1000 of the house. Outside, that is "nobody" if the caller is root, and
otherwise the caller. This needs Linux 5.14, the first that counts processes in this way.

Everything here raises OSError with the name of the failed call."""

import ctypes
import os
import sysconfig
from dataclasses import dataclass

__all__ = ["House", "check", "drop_capabilities", "enter_room", "libc", "make_house", "readable_layout"]

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442

_CLONE_NEW = {"mount": 1 << 17, "uts": 1 << 26, "ipc": 1 << 27, "user": 1 << 28, "pid": 1 << 29, "network": 1 << 30}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 2, 4, 8, 1 << 5, 1 << 12, 1 << 14, 1 << 19
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION = 0x20080522

_RESIDENT = 1000
_NOBODY = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")
_MAX_FILES = 4096  # in /tmp
_BASE = "/proc"  # where the new root is built: this directory exists wherever the maps below can be written

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomLayout:
    """What a program may read: directories and files (name, real path), and links (name, target). The `hidden`
    directories exist but look empty."""

    readable: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class House:
    """A descriptor of the host's /proc, which is needed to enter a room and which the house itself lacks."""

    processes: int


def readable_layout() -> RoomLayout:
    """Return the library directories of the interpreter and the system, without their installed packages."""
    stdlib = sysconfig.get_path("stdlib")
    wanted = dict.fromkeys(["/etc/ld.so.cache", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", os.path.dirname(stdlib)])
    outermost = [path for path in wanted if os.path.exists(path) and not any(path.startswith(other + "/") for other in wanted)]
    packages = [os.path.join(stdlib, "site-packages"), os.path.join(stdlib, "dist-packages"), "/usr/lib/python3/dist-packages"]
    return RoomLayout(
        readable=tuple((path, os.path.realpath(path)) for path in outermost if not os.path.islink(path)),
        links=tuple((path, os.readlink(path)) for path in outermost if os.path.islink(path)),
        hidden=tuple(path for path in packages if os.path.isdir(path)),
    )


def make_house(layout: RoomLayout) -> House:
    """Move the caller, for good, into namespaces that have nothing but what `layout` names."""
    processes = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _has("uid", _NOBODY) and _has("gid", _NOBODY):
        _unshare_with_nobody()
    else:
        _unshare("user", "mount")
        _write_maps(processes, f"{_RESIDENT} {uid} 1", f"{_RESIDENT} {gid} 1")
    _make_root(layout)
    return House(processes=processes)


def enter_room(house: House, *, tmp_bytes: int) -> None:
    """Move the caller, for good, into namespaces of its own of all kinds. Its next child starts the pid namespace."""
    if os.geteuid() != _RESIDENT:
        os.setgroups([])
        os.setresgid(_RESIDENT, _RESIDENT, _RESIDENT)
        os.setresuid(_RESIDENT, _RESIDENT, _RESIDENT)
        check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")  # otherwise it may not write its own maps
    _unshare(*_CLONE_NEW)
    check(libc.sethostname(b"sandbox", 7), "sethostname")
    _write_maps(house.processes, *[f"{_RESIDENT} {_RESIDENT} 1"] * 2)
    options = f"size={tmp_bytes},nr_inodes={_MAX_FILES},mode=1777"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)


def drop_capabilities() -> None:
    """Give up the rights that the caller has in its namespaces."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def check(result: int, name: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _unshare(*kinds: str) -> None:
    check(libc.unshare(sum(_CLONE_NEW[kind] for kind in kinds)), "unshare")


def _unshare_with_nobody() -> None:
    """Enter new user and mount namespaces that have root and nobody. Mapping another user than oneself needs rights
    outside the namespace, so a child that stays outside does it."""
    pid = os.getpid()
    waiting, go = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(go)
        os.read(waiting, 1)
        try:
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(f"0 0 1\n{_RESIDENT} {_NOBODY} 1")
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    os.close(waiting)
    _unshare("user", "mount")
    os.write(go, b"x")
    os.close(go)
    number = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if number:
        raise OSError(number, f"writing the user namespace's maps: {os.strerror(number)}")


def _has(kind: str, number: int) -> bool:
    """Return whether the caller's user namespace has the id `number`."""
    with open(f"/proc/self/{kind}_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + length for first, _, length in ranges)


def _write_maps(processes: int, uid_map: str, gid_map: str) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
        descriptor = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=processes)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _make_root(layout: RoomLayout) -> None:
    """Replace the caller's root by that of `layout`; its mount namespace no longer has the old one."""
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", _BASE, "tmpfs", _MS_NOSUID, "size=256k,mode=755")
    old = _BASE + "/old"
    os.mkdir(old)
    check(libc.syscall(_PIVOT_ROOT[os.uname().machine], _BASE.encode(), old.encode()), "pivot_root")
    os.chdir("/")
    for name, real in layout.readable:
        _show("/old" + real, name, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for name in _DEVICES:
        _show(f"/old/dev/{name}", f"/dev/{name}", _ATTR_NOSUID)
    for name in layout.hidden:
        _mount("tmpfs", name, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=4k")
    for name, target in (*layout.links, ("/dev/shm", "/tmp")):
        os.symlink(target, name)
    os.mkdir("/tmp")
    check(libc.umount2(b"/old", _MNT_DETACH), "umount2")
    os.rmdir("/old")
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _show(source: str, target: str, attributes: int) -> None:
    """Mount a file or directory, and what is mounted in it, with `attributes` everywhere."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    place = (ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(target.encode()), ctypes.c_uint(_AT_RECURSIVE))
    check(libc.syscall(_MOUNT_SETATTR, *place, wanted, ctypes.c_size_t(32)), f"mount_setattr {target}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    source_, kind_, options_ = (None if text is None else text.encode() for text in (source, kind, options))
    check(libc.mount(source_, target.encode(), kind_, ctypes.c_ulong(flags), options_), f"mount {target}")
