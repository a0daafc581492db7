import { writeFileSync } from 'node:fs';
import preact from '@preact/preset-vite';
import { defineConfig } from 'vite';

export default defineConfig({
  plugins: [
    preact(),
    // dist is embedded by Go, which needs a file there before the first build.
    { name: 'keep', closeBundle: () => writeFileSync('dist/.keep', '') },
  ],
  // No inlined assets: the page's content security policy allows only files.
  build: { outDir: 'dist', assetsInlineLimit: 0, modulePreload: { polyfill: false }, target: 'es2022' },
  server: { proxy: { '/v1': 'http://127.0.0.1:8440' } },
});
