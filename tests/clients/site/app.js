// An app knows where it lives from its own location alone.
document.querySelector("#script").textContent = `the script has run on ${document.title}`;

// Opens a WebSocket beside the page, says something, and closes it again. Tells all that came.
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
