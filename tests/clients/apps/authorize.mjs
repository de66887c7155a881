// A proxy for one application that sets the Authorization header of all requests, as a sidecar container does.
//
//   node authorize.mjs LISTEN_ADDRESS LISTEN_PORT TARGET_PORT USER:PASSWORD
import http from "node:http";

const [address, port, target, credentials] = process.argv.slice(2);
const authorization = `Basic ${Buffer.from(credentials).toString("base64")}`;

http.createServer((request, response) => {
  const { method, url: path, headers } = request;
  const onward = http.request({ port: target, method, path, headers: { ...headers, authorization } }, (answer) => {
    response.writeHead(answer.statusCode, answer.rawHeaders);
    answer.pipe(response);
  });
  onward.on("error", (error) => response.writeHead(502).end(error.message));
  request.pipe(onward);
}).listen(Number(port), address, () => console.log("listening"));
