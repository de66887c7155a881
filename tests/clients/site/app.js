// Applications know their base URL only from their location.
document.querySelector("#script").textContent = `the script has run on ${document.title}`;

// Sends a number of bytes, and shows the number that the server has received.
window.upload = async (size) => {
  const response = await fetch(new URL("upload", location.href), { method: "POST", body: new Uint8Array(size) });
  return Number(await response.text());
};

// Receives three events of an endless stream.
window.listen = () => new Promise((resolve, reject) => {
  const source = new EventSource(new URL("events", location.href));
  const events = [];
  source.onmessage = ({ data }) => {
    events.push(data);
    if (events.length === 3) {
      source.close();
      resolve(events);
    }
  };
  source.onerror = () => reject(new Error(`the events broke off after ${events.length}`));
});

// Opens a WebSocket, sends a message, closes it, and shows all received messages.
window.talk = (protocols) => new Promise((resolve, reject) => {
  const url = new URL("socket?room=1", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url, protocols);
  const messages = [];
  socket.onmessage = ({ data }) => {
    messages.push(data);
    if (messages.length === 1) {
      socket.send("good day");
    } else {
      socket.close(4001, "done");
    }
  };
  socket.onclose = ({ code, wasClean }) => resolve({ protocol: socket.protocol, messages, code, wasClean });
  socket.onerror = () => reject(new Error(`the WebSocket to ${url} failed`));
});
