'use strict';
// npm's install script: a prebuilt binary that loads here is enough, otherwise build one.
// A binary left in build/ by an earlier build is not asked: the sources may have changed since.
const path = require('node:path');

function prebuiltWorks() {
  process.env.PREBUILDS_ONLY = '1';
  try {
    require('node-gyp-build')(path.join(__dirname, '..'));
    return true;
  } catch (error) {
    console.log(`selective-scan: building from source; ${error.message.split('\n')[0]}`);
    return false;
  }
}

// npm install --build-from-source says it through the environment.
if (process.env.npm_config_build_from_source === 'true' || !prebuiltWorks()) require('./build.cjs');
