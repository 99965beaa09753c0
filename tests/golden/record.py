#!/usr/bin/env python3
"""Stands between clients and a server, and keeps one frame of each kind that the clients send.

    record.py DIRECTORY LISTEN=TARGET [LISTEN=TARGET ...]      (addresses as host:port)

A frame's file is named after its header form, its request code, and what sets it apart from others of that code. Files
that are there already are kept. Ends with TERM or Ctrl-C.
"""
import json
import os
import socket
import struct
import sys
import threading

NAMES = {
    10: "send", 11: "pull", 14: "query-consumer-offset", 15: "update-consumer-offset", 29: "search-offset",
    30: "max-offset", 31: "min-offset", 34: "heartbeat", 35: "unregister-client", 38: "consumer-list", 41: "lock-batch",
    42: "unlock-batch", 46: "check-client-config", 105: "route", 310: "send-v2", 320: "send-batch", 361: "lite-pull",
}


def read_exactly(stream, count):
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def describe(frame):
    """Header form, code and flag of a frame with its length prefix."""
    mark = struct.unpack_from(">I", frame, 4)[0]
    header = frame[8:8 + (mark & 0xFFFFFF)]
    if mark >> 24 == 0:
        values = json.loads(header)
        return "json", values["code"], values["flag"]
    code, _language, _version, _opaque, flag = struct.unpack_from(">hbhii", header)
    return "binary", code, flag


def forward_frames(source, target, directory):
    """Client to server: frame by frame, keeping those that are new."""
    try:
        while True:
            prefix = read_exactly(source, 4)
            frame = prefix + read_exactly(source, struct.unpack(">I", prefix)[0])
            target.sendall(frame)
            form, code, flag = describe(frame)
            if flag & 1:
                continue  # an answer of the client
            name = f"{form}-{code}-{NAMES.get(code, 'other')}{'-oneway' if flag & 2 else ''}.bin"
            path = os.path.join(directory, name)
            if not os.path.exists(path):
                with open(path, "xb") as file:
                    file.write(frame)
                print(name, len(frame), flush=True)
    except (EOFError, OSError, FileExistsError):
        pass
    finally:
        for stream in (source, target):
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def forward_bytes(source, target):
    """Server to client: as it comes."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass


def serve(listen, target, directory):
    def address(text):
        host, port = text.rsplit(":", 1)
        return host, int(port)

    listener = socket.create_server(address(listen))
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(address(target))
        threading.Thread(target=forward_frames, args=(client, server, directory), daemon=True).start()
        threading.Thread(target=forward_bytes, args=(server, client), daemon=True).start()


def main():
    directory, *pairs = sys.argv[1:]
    threads = []
    for pair in pairs:
        listen, target = pair.split("=")
        threads.append(threading.Thread(target=serve, args=(listen, target, directory), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
