"""The scorer's side of the reward bridge (docs/reward.md), standard library only.

    class Mine:
        dims = ("VQ", "MQ", "TA")
        def load(self, config): ...            # config: dict of the trainer's options; may raise
        def info(self): return {"scorer": "mine 1"}
        def selftest(self): return [0.1, 0.2, 0.3]        # or []
        def score(self, clip): return raw, norm, frames_used, tokens
    osp_reward.serve(Mine())

`clip` has frames (a read-only memoryview of frames*height*width*3 bytes, RGB), count, height, width,
resized, fps, total, index (source numbers of the frames), prompt. score raises BadInput for a clip
that no attempt can score, MemoryError when memory is short. The process talks over descriptor 3;
what it prints goes into its log. One thread reads messages and answers heartbeats while the main
thread scores, so a scorer that computes for long is not taken for a dead one."""
import math
import mmap
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import zlib

VERSION, HEADER, MAX_PAYLOAD, MAX_PROMPT, MAX_TEXT = 1, 32, 1 << 20, 1 << 14, 512
HELLO, CONFIG, READY, SCORE, RESULT, PING, PONG, BYE, FATAL = 1, 2, 3, 4, 5, 6, 7, 10, 11
OK, BAD_INPUT, NOT_FINITE, NO_MEMORY, INTERNAL = range(5)
EX_DATA, EX_NOINPUT, EX_SOFTWARE, EX_CONFIG = 65, 66, 70, 78


class BadInput(Exception):
    """This clip cannot be scored, however often it is tried."""


class Refused(Exception):
    """The scorer cannot start; code is the exit code of the training (sysexits)."""

    def __init__(self, text, code=EX_CONFIG):
        super().__init__(text)
        self.code = code


class ProtocolError(Exception):
    pass


def pack(kind, ident=0, payload=b""):
    head = struct.pack("<4sHHIIQI", b"OSPR", VERSION, kind, len(payload), 0, ident,
                       zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def unpack_header(head):
    """(kind, payload bytes, ident, crc of the payload) of a 32-byte header."""
    magic, version, kind, size, flags, ident, crc, own = struct.unpack("<4sHHIIQII", head)
    if magic != b"OSPR" or own != zlib.crc32(head[:28]):
        raise ProtocolError("bytes that are no message")
    if version != VERSION or flags or size > MAX_PAYLOAD:
        raise ProtocolError("a message of version %d, flags %d, %d bytes" % (version, flags, size))
    return kind, size, ident, crc


def printable(text, limit):
    """One line without control characters, of at most so many bytes."""
    text = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in str(text))
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def to_lines(values):
    return "".join("%s=%s\n" % (k, printable(v, 1000)) for k, v in values.items()).encode()


def from_lines(payload):
    out = {}
    for line in payload.decode("utf-8").split("\n")[:-1]:
        key, _, value = line.partition("=")
        out[key] = value
    return out


class Clip:
    def __init__(self, ident, payload, memory):
        at = struct.calcsize("<IIQIIIBBHdII")
        (n, self.slot, offset, self.count, self.height, self.width, layout, resized, zero, self.fps,
         self.total, indices) = struct.unpack_from("<IIQIIIBBHdII", payload)
        if n != 1 or layout or resized > 1 or zero or (indices and indices != self.count):
            raise ProtocolError("a request of another form")
        self.index = list(struct.unpack_from("<%dI" % indices, payload, at))
        at += 4 * indices
        self.crc, size = struct.unpack_from("<II", payload, at)
        at += 8
        if size > MAX_PROMPT or at + size != len(payload):
            raise ProtocolError("a request with a wrong length")
        self.prompt = payload[at:].decode("utf-8")
        self.ident, self.resized = ident, bool(resized)
        if not self.index:
            self.index = list(range(self.count))
        end = offset + self.count * self.height * self.width * 3
        if end > len(memory):
            raise ProtocolError("frames outside of the shared memory")
        self.frames = memory[offset:end]


class Connection:
    def __init__(self, fd=3):
        self.sock = socket.socket(fileno=fd)
        self.lock = threading.Lock()

    def read(self, n):
        parts = []
        while n:
            part = self.sock.recv(min(n, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def body(self, head):
        kind, size, ident, crc = unpack_header(head)
        payload = self.read(size)
        if zlib.crc32(payload) != crc:
            raise ProtocolError("a payload with a wrong checksum")
        return kind, ident, payload

    def receive(self):
        return self.body(self.read(HEADER))

    def receive_config(self):
        """CONFIG brings the memory file with its first byte."""
        head, fds, _, _ = socket.recv_fds(self.sock, HEADER, 1)
        if not head:
            raise EOFError
        kind, _, payload = self.body(head + self.read(HEADER - len(head)))
        if kind != CONFIG or len(fds) != 1:
            raise ProtocolError("no CONFIG with a memory file at the start")
        return from_lines(payload), fds[0]

    def send(self, kind, ident=0, payload=b""):
        with self.lock:
            self.sock.sendall(pack(kind, ident, payload))


class Busy:
    """What PONG tells."""

    def __init__(self):
        self.ident, self.since, self.done = 0, time.monotonic(), 0

    def lines(self):
        ms = int(1000 * (time.monotonic() - self.since)) if self.ident else 0
        return to_lines({"busy": self.ident, "busy_ms": ms, "done": self.done})


def reader(conn, work, busy):
    """Answers heartbeats; hands requests over. Leaves the process when the trainer has."""
    try:
        while True:
            kind, ident, payload = conn.receive()
            if kind == PING:
                conn.send(PONG, ident, busy.lines())
            elif kind == SCORE:
                work.put((ident, payload))
            elif kind == BYE:
                break
            else:
                raise ProtocolError("a message of type %d" % kind)
    except (EOFError, OSError):
        pass
    except Exception:  # the trainer must see the end of this process, whatever happened
        traceback.print_exc()
        os._exit(EX_DATA)
    os._exit(0)


def result(status, crc=0, raw=(), norm=(), frames=0, tokens=0, ms=0.0, text=""):
    text = printable(text, MAX_TEXT).encode()
    return (struct.pack("<IIII", 1, status, crc, len(raw)) +
            struct.pack("<%dd" % len(raw), *raw) + struct.pack("<%dd" % len(norm), *norm) +
            struct.pack("<IIfI", frames, tokens, ms, len(text)) + text)


def score_one(scorer, ident, payload, memory):
    start = time.monotonic()
    clip = Clip(ident, payload, memory)
    crc = zlib.crc32(clip.frames)
    if crc != clip.crc:
        return result(INTERNAL, crc, text="the frames changed on their way")
    try:
        raw, norm, frames, tokens = scorer.score(clip)
        raw, norm = [float(v) for v in raw], [float(v) for v in norm]
        if len(raw) != len(scorer.dims) or len(norm) != len(raw):
            return result(INTERNAL, crc, text="the scorer gave %d scores" % len(raw))
        if not all(math.isfinite(v) for v in raw + norm):
            return result(NOT_FINITE, crc, text="the scores are not finite: %s" % raw)
        ms = 1000 * (time.monotonic() - start)
        return result(OK, crc, raw, norm, int(frames), int(tokens), ms)
    except BadInput as e:
        return result(BAD_INPUT, crc, text=str(e))
    except MemoryError as e:
        return result(NO_MEMORY, crc, text="out of memory: %s" % e)
    except Exception as e:
        traceback.print_exc()
        return result(INTERNAL, crc, text="%s: %s" % (type(e).__name__, e))


def ready_lines(scorer):
    lines = {"dims": ",".join(scorer.dims), "pid": os.getpid()}
    lines.update(scorer.info())
    test = [float(v) for v in scorer.selftest()]
    if not all(math.isfinite(v) for v in test):
        raise Refused("the self-test gave %s" % test, EX_SOFTWARE)
    if test:
        lines["selftest"] = ",".join(repr(v) for v in test)
    return to_lines(lines)


def serve(scorer, fd=3):
    """Runs until the trainer says BYE or is gone; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    try:
        conn = Connection(fd)
    except OSError:
        sys.exit("this program is started by the trainer (reward.command); it has no use by hand")
    work, busy = queue.Queue(), Busy()
    try:
        config, memory_fd = conn.receive_config()
        memory = memoryview(mmap.mmap(memory_fd, int(config["memory"]), mmap.MAP_SHARED,
                                      mmap.PROT_READ))
        os.close(memory_fd)
        conn.send(HELLO, 0, to_lines({"protocol": VERSION, "pid": os.getpid(),
                                      "nonce": config["nonce"]}))
        threading.Thread(target=reader, args=(conn, work, busy), daemon=True).start()
        scorer.load(config)
        conn.send(READY, 0, ready_lines(scorer))
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException as e:  # the trainer prints the reason; the traceback is in the log
        code = e.code if isinstance(e, Refused) else EX_SOFTWARE
        if not isinstance(e, Refused):
            traceback.print_exc()
        text = str(e) if isinstance(e, Refused) else "%s: %s" % (type(e).__name__, e)
        print("refused:", text, file=sys.stderr, flush=True)
        conn.send(FATAL, 0, to_lines({"code": code, "text": printable(text, 350)}))
        os._exit(code)
    while True:
        busy.ident = 0
        ident, payload = work.get()
        busy.ident, busy.since = ident, time.monotonic()
        try:
            answer = score_one(scorer, ident, payload, memory)
        except Exception:
            traceback.print_exc()
            os._exit(EX_DATA)
        busy.done += 1
        try:
            conn.send(RESULT, ident, answer)
        except OSError:
            os._exit(0)
