# Serves HTTP/3 with a text that names the request.
#
#   python3 http3_server.py ADDRESS PORT CERTIFICATE KEY NAME

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

address, port, certificate, key, name = sys.argv[1:]


class Server(QuicConnectionProtocol):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.http = H3Connection(self._quic)
        self.lengths = {}

    def quic_event_received(self, event):
        for event in self.http.handle_event(event):
            if isinstance(event, HeadersReceived):
                headers = dict(event.headers)
                self.lengths[event.stream_id] = 0
                self.path = headers[b":path"].decode()
            if isinstance(event, DataReceived):
                self.lengths[event.stream_id] += len(event.data)
            if isinstance(event, (HeadersReceived, DataReceived)) and event.stream_ended:
                self.respond(event.stream_id)

    def respond(self, stream):
        body = f"{name} {self.path} after {self.lengths.pop(stream)} bytes\n".encode()
        # Several datagrams.
        if self.path == "/large":
            body += b"x" * 1_000_000
        self.http.send_headers(stream, [(b":status", b"200"), (b"content-type", b"text/plain")])
        self.http.send_data(stream, body, end_stream=True)
        self.transmit()


async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)
    await serve(address, int(port), configuration=configuration, create_protocol=Server)
    print("listening", flush=True)
    await asyncio.Future()


asyncio.run(main())
