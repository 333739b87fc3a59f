import js from '@eslint/js';
import { defineConfig, globalIgnores } from 'eslint/config';
import tseslint from 'typescript-eslint';

const node = Object.fromEntries(
  ['process', 'console', 'require', 'module', '__dirname'].map((name) => [name, 'readonly']),
);

export default defineConfig(
  globalIgnores(['build/', 'coverage/', 'dist/', 'models/*/corpus/', 'prebuilds/', 'test/fixtures/']),
  js.configs.recommended,
  {
    files: ['**/*.{cjs,mjs}'],
    languageOptions: { globals: node },
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommended],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/consistent-type-imports': [
        'error',
        { fixStyle: 'inline-type-imports', disallowTypeAnnotations: false },
      ],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      // The output is CommonJS, and what is not always needed is loaded late.
      '@typescript-eslint/no-require-imports': 'off',
      '@typescript-eslint/no-floating-promises': 'error',
      eqeqeq: 'error',
      'no-restricted-syntax': [
        'error',
        { selector: 'ExportDefaultDeclaration', message: 'Export by name: one name finds every use.' },
      ],
    },
  },
  {
    // Tests and benchmarks may take apart JSON as it comes; the library may not.
    files: ['lib/**/*.ts'],
    extends: [tseslint.configs.recommendedTypeCheckedOnly],
    rules: {
      // Numbers belong into messages as they are; a Tensor's toString() is its dtype and shape.
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        {
          allowNumber: true,
          allowBoolean: true,
          allowArray: true,
          allow: [{ from: 'file', name: 'Tensor' }],
        },
      ],
    },
  },
);
