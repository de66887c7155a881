// Settings of Node-RED.
module.exports = {
  uiHost: process.env.ADDRESS,
  uiPort: Number(process.env.PORT),
  flowFile: "flows.json",
  // Nothing is requested from other hosts.
  telemetry: { enabled: false },
  externalModules: { palette: { allowInstall: false } },
  // The tour for new users covers the editor.
  editorTheme: { tours: false },
};
