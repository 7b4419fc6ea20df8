/** Files of the playground, bundled as text (`rules` in wrangler.toml). */
declare module "*/web/index.html" {
  const text: string;
  export default text;
}
declare module "*/web/app.js" {
  const text: string;
  export default text;
}
declare module "*/web/style.css" {
  const text: string;
  export default text;
}
/** Files of the prompt router: a module that is compiled, and bytes. */
declare module "*.wasm" {
  const module: WebAssembly.Module;
  export default module;
}
declare module "*.onnx" {
  const bytes: ArrayBuffer;
  export default bytes;
}
