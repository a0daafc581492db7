// Package peers holds programs of others, pinned, and tests that let them talk
// to our printer emulator: what they read from it and print on it was not
// agreed upon with us.
//
// `npm ci` puts them into node_modules, which `make test` does. They are asked
// by peer.mjs and ship nowhere.
package peers
