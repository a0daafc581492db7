//go:build race

package haltest_test

const raceDetector = true
