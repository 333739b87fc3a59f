// One copy of code and state for both module systems: Node finds the names in the CommonJS build.
export * from './dist/index.js';
