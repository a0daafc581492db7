// Package emulator is hardware made of software, for the simulator and for
// tests of drivers: an ESC/POS receipt printer that draws what it prints, a Star
// one, barcode scanners, USB gadgets, a chip card for the virtual reader of
// pcscd, a pcscd of its own to put it in, or one that is played where there is
// none. A Duty says what happens to them on a day, with the truth of it to judge
// by; Incidents are what can go wrong, with the codes that have to be told.
//
// Each behaves as the real thing does where a driver could trip over it: an
// offline printer answers real-time queries and nothing else, a second
// connection waits for the first, a card can be torn out half way. Faults are
// set by hand or by the day. What it prints and what it did not understand is
// kept for tests to read. Nothing outlives the process that started it.
//
// It exports more names than other rooms because it is a box of props: a test
// picks the one that it needs.
package emulator
