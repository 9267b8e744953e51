"""A server behind the Unix socket `socket`: python3 holding.py BYTES.

A thread for each request, which holds so many bytes for the milliseconds that are its path, and gives them back to the kernel
before it answers.
"""
import http.server
import mmap
import socketserver
import sys
import time

DATA = b"\1" * int(sys.argv[1])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        held = mmap.mmap(-1, len(DATA), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.write(DATA)
        time.sleep(int(self.path[1:]) / 1000)
        held.close()
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *arguments):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def get_request(self):
        request, _ = super().get_request()
        return request, ("client", 0)


Server("socket", Handler).serve_forever()
