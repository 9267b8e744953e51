"""A server behind the Unix socket `socket`: python3 leaky.py KIND.

Each request takes 100,000 bytes. What becomes of them is its kind's:
  leaks     they are kept
  fixed     they are let go
  cache     the last 400 are kept
  sawtooth  they are garbage in a circle, which is collected once in 2,000 requests
"""
import collections
import gc
import http.server
import os
import socketserver
import sys

BYTES = 100_000
kept = []
cache = collections.OrderedDict()
requests = 0


class Circle:
    def __init__(self, data):
        self.data = data
        self.itself = self


def leaks(data):
    kept.append(data)


def fixed(data):
    pass


def cached(data):
    cache[requests] = data
    if len(cache) > 400:
        cache.popitem(last=False)


def sawtooth(data):
    Circle(data)
    if requests % 2000 == 0:
        gc.collect()


KINDS = {"leaks": leaks, "fixed": fixed, "cache": cached, "sawtooth": sawtooth}
keep = KINDS[sys.argv[1]]
gc.disable()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global requests
        requests += 1
        # Written to, so that it is in memory.
        keep(bytes([requests % 255 + 1]) * BYTES)
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass


class Server(socketserver.UnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("client", 0)


Server("socket", Handler).serve_forever()
