package hal_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tillward/tillward/hal"
)

func TestMayHoldPAN(t *testing.T) {
	for s, want := range map[string]bool{
		"4111111111111111":            true,
		"card 4111 1111 1111 1111 ok": true,
		"4111-1111-1111-1111":         true,
		"xx5500000000000004yy":        true,
		"%B4111111111111111^A/B^":     true,
		";12345678=2512":              true,
		"4111111111111112":            false,
		"paper 12 m left":             false,
		"":                            false,
		"till 12 378282246310005":     true,
		"3782 822463 10005 77":        true,
		"2026-11-24 10.15":            false,
	} {
		if got := hal.MayHoldPAN(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

// No number that a card could bear gets past the guard, however it is written.
func TestPANGuardProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		digits := rapid.SliceOfN(rapid.IntRange(0, 9), 12, 18).Draw(t, "digits")
		sum := 0
		for i := range digits {
			v := digits[len(digits)-1-i]
			if i%2 == 0 {
				if v *= 2; v > 9 {
					v -= 9
				}
			}
			sum += v
		}
		digits = append(digits, (10-sum%10)%10)
		sep := rapid.SampledFrom([]string{"", " ", "-"}).Draw(t, "separator")
		var b strings.Builder
		b.WriteString(rapid.StringMatching(`[a-z ]{0,10}`).Draw(t, "before"))
		for i, d := range digits {
			if i > 0 && i%4 == 0 {
				b.WriteString(sep)
			}
			b.WriteByte(byte('0' + d))
		}
		b.WriteString(rapid.StringMatching(`[a-z ]{0,10}`).Draw(t, "after"))
		if !hal.MayHoldPAN(b.String()) {
			t.Fatalf("%q passed the guard", b.String())
		}
	})
}

func TestErrorIs(t *testing.T) {
	err := error(&hal.Error{Code: "E_OFFLINE", Op: "print", Err: errors.New("no route")})
	if !errors.Is(err, &hal.Error{Code: "E_OFFLINE"}) || errors.Is(err, &hal.Error{Code: "E_TIMEOUT"}) {
		t.Errorf("%v does not match its code alone", err)
	}
}

func TestUnknownOption(t *testing.T) {
	err := hal.CheckOptions(hal.Config{ID: "x", Options: map[string]string{"colour": "red"}}, "reader")
	if err == nil || !strings.Contains(err.Error(), "colour") || !strings.Contains(err.Error(), "reader") {
		t.Errorf("got %v, want an error naming the option and what is known", err)
	}
}
