#!/usr/bin/env python3
"""A file system that shows a folder, and at one point stops to answer: a drive that hangs.

    hang_fs.py SOURCE MOUNT_POINT FILE OPERATION [OFFSET]

From the first OPERATION (open, or read at or behind OFFSET) of a file of this name on, nothing that
concerns this file is answered any more. With the operation "indirect", which is a read otherwise,
there is no direct I/O. Waits that the system lets end when they are killed do end.
Prints "ready" when it is mounted; ends when it is unmounted. Read only; speaks to /dev/fuse itself.
"""
import errno
import os
import stat
import struct
import subprocess
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY = 25, 26, 27, 28, 29, 36, 38
BATCH_FORGET = 42
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_FLAGS = 1 << 0 | 1 << 15  # FUSE_ASYNC_READ, FUSE_ASYNC_DIO
CACHED_S = 3600


def attributes(node, path):
    s = os.stat(path)
    return struct.pack("<QQQQQQIIIIIIIIII", node, s.st_size, s.st_blocks, int(s.st_atime),
                       int(s.st_mtime), int(s.st_ctime), 0, 0, 0, s.st_mode, s.st_nlink, s.st_uid,
                       s.st_gid, 0, 4096, 0)


class FileSystem:
    def __init__(self, source, name, operation, offset):
        self.paths = {1: source}
        self.nodes = {source: 1}
        self.name, self.offset = name, offset
        self.direct_fails = operation == "indirect"
        self.operation = "read" if self.direct_fails else operation
        self.hanging = False

    def hangs(self, operation, node, offset=0):
        if os.path.basename(self.paths[node]) != self.name:
            return False
        self.hanging |= operation == self.operation and offset >= self.offset
        return self.hanging

    def node_of(self, path):
        if path not in self.nodes:
            self.nodes[path] = len(self.nodes) + 1
            self.paths[self.nodes[path]] = path
        return self.nodes[path]

    def entry(self, path):
        node = self.node_of(path)
        return struct.pack("<QQQQII", node, 0, CACHED_S, CACHED_S, 0, 0) + attributes(node, path)

    def list(self, path, offset):
        names = sorted(os.listdir(path))[offset:]
        out = b""
        for i, name in enumerate(names):
            kind = stat.S_IFMT(os.stat(os.path.join(path, name)).st_mode) >> 12
            encoded = name.encode()
            out += struct.pack("<QQII", self.node_of(os.path.join(path, name)), offset + i + 1,
                               len(encoded), kind) + encoded + b"\0" * (-len(encoded) % 8)
        return out[:4096] if len(out) <= 4096 else b""

    def answer(self, opcode, node, body):
        """Bytes, a negative errno, or None for no answer."""
        path = self.paths[node] if node else None
        if opcode == LOOKUP:
            child = os.path.join(path, body.rstrip(b"\0").decode())
            return self.entry(child) if os.path.exists(child) else -errno.ENOENT
        if opcode == GETATTR:
            return struct.pack("<QII", CACHED_S, 0, 0) + attributes(node, path)
        if opcode == OPEN and os.access(path, os.R_OK):
            if struct.unpack_from("<I", body)[0] & os.O_ACCMODE != os.O_RDONLY:
                return -errno.EROFS
            return None if self.hangs("open", node) else struct.pack("<QII", 0, 0, 0)
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            offset, size, flags = struct.unpack_from("<8xQI12xI", body)
            if self.direct_fails and flags & os.O_DIRECT:
                return -errno.EINVAL
            if self.hangs("read", node, offset):
                return None
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        if opcode == READDIR:
            return self.list(path, struct.unpack_from("<8xQ", body)[0])
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        return b"" if opcode in (FLUSH, RELEASE, RELEASEDIR) else -errno.ENOSYS

    def serve(self, device):
        while True:
            try:
                request = os.read(device, 1 << 21)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            body = request[IN_HEADER.size:]
            if opcode in (FORGET, BATCH_FORGET):
                continue
            if opcode == INTERRUPT:
                unique, reply = struct.unpack_from("<Q", body)[0], -errno.EINTR
            elif opcode == INIT:
                reply = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 20, INIT_FLAGS, 64, 48, 1 << 17,
                                    1, 0, 0, 0)
            else:
                reply = self.answer(opcode, node, body)
            if reply is None:
                continue
            code, data = (reply, b"") if isinstance(reply, int) else (0, reply)
            try:
                os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(data), code, unique) + data)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):  # nobody waits any more
                    raise


def main():
    source, mount_point, name, operation = sys.argv[1:5]
    offset = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    device = os.open("/dev/fuse", os.O_RDWR)
    subprocess.run(["mount", "-i", "-t", "fuse", "-o",
                    f"ro,fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}",
                    "hang_fs", mount_point], check=True, pass_fds=[device])
    print("ready", flush=True)
    FileSystem(source, name, operation, offset).serve(device)


if __name__ == "__main__":
    main()
