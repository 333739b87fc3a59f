{
  'targets': [
    {
      # A shim for node-gyp and prebuildify: CMakeLists.txt holds the build.
      'target_name': 'selective_scan',
      'type': 'none',
      'actions': [
        {
          'action_name': 'cmake',
          'inputs': [],
          'outputs': ['build/Release/selective_scan.node'],
          'action': ['node', 'scripts/build.cjs'],
        },
      ],
    },
  ],
}
