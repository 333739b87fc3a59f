declare module 'node-gyp-build' {
  const nodeGypBuild: { resolve(directory: string): string };
  export = nodeGypBuild;
}
