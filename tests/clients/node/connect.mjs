// Opens tunnels by CONNECT over one HTTP/2 connection, and sends an HTTP/1.1 request through each.
//
//   node connect.mjs BASTION CA TOKEN PATH AUTHORITY…
//
// Prints a line per authority: the status of the CONNECT, and the body of the response to `GET PATH`.

import { readFileSync } from "node:fs";
import http2 from "node:http2";

const [bastion, ca, token, path, ...authorities] = process.argv.slice(2);
const session = http2.connect(bastion, { ca: readFileSync(ca) });

function tunnel(authority) {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ":method": "CONNECT",
      ":authority": authority,
      "proxy-authorization": `Bearer ${token}`,
    });
    let status;
    let received = "";
    stream.setEncoding("utf8");
    stream.on("response", (headers) => {
      status = headers[":status"];
      if (status === 200) {
        stream.write(`GET ${path} HTTP/1.1\r\nHost: ${authority}\r\nConnection: close\r\n\r\n`);
      }
    });
    stream.on("data", (chunk) => {
      received += chunk;
    });
    stream.on("end", () => {
      stream.end();
      resolve(`${status} ${received.split("\r\n\r\n").pop().trim()}`);
    });
    stream.on("error", reject);
  });
}

// All at once.
for (const line of await Promise.all(authorities.map(tunnel))) {
  console.log(line);
}
session.close();
