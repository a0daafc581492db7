package hal_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

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

		// shapes of tracks, whatever the check digit says
		"%B 4111 1111 1111 1112 ^DOE/J^2512":  true,
		"%B4111":                              true,
		"%B^":                                 false,
		"25%B0C":                              false,
		"%C3%B6l":                             false,
		";4111 1111 1111 1112=2512":           true,
		";594111111111111112=2512":            true,
		"4111111111111112=25121010000":        true,
		"4111111111111112D25121010000":        true,
		"B4111111111111112^DOE/J^2512101":     true,
		"a=1;b=2":                             false,
		"; 12=x":                              false,
		"file 123456789012Data":               false,
		"id=000000000000000000000001=2512101": false,

		// beside, within and between other digits
		"3782822463100052512":                       true, // with its expiry date
		"00004111111111111111":                      true,
		"411111111111111100002512":                  true,
		"62123456789012345":                         false,
		"\t4111\n1111\r\n1111_1111":                 true,
		"4111/1111,1111'1111":                       true,
		"3782/822463/10005":                         true,
		"/tmp/2246854450/001/till-2":                false, // a path, whose digits pass by chance
		"/tmp/4111111111111111/001":                 true,
		"4111\u00a01111\u20111111\u200b1111":        true,
		"４１１１１１１１１１１１１１１１":                          true, // full width
		"\u0664\u0661\u0661\u0661" + "111111111111": true,
		"4111:1111:1111:1111":                       false, // as documented
		"192.168.100.100:49152":                     false,

		// no cards
		"0000000000000000":    false,
		"1795715408123":       false,
		"1795715408008":       false, // passes Luhn, as one of ten times does
		"1795715408123456789": false,
		"122000000000003":     true, // an airline's
	} {
		if got := hal.MayHoldPAN(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

// number makes a number that passes Luhn, of the digits given and one more.
func number(digits []int) string {
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
	var b strings.Builder
	for _, d := range append(digits, (10-sum%10)%10) {
		b.WriteByte(byte('0' + d))
	}
	return b.String()
}

// No number that a card could bear gets past the guard, however it is written.
func TestPANGuardProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(2, 9).Draw(t, "first digit")
		pan := number(append([]int{first}, rapid.SliceOfN(rapid.IntRange(0, 9), 11, 17).Draw(t, "digits")...))
		sep := rapid.SampledFrom([]string{"", " ", "-", ".", "_", "/", "  ", " - ", "\t", "\n", "\u00a0", "\u2013"}).Draw(t, "separator")
		every := rapid.IntRange(1, 6).Draw(t, "every")
		var b strings.Builder
		b.WriteString(rapid.StringMatching(`[a-z ]{0,10}`).Draw(t, "before"))
		for i, d := range pan {
			if i > 0 && i%every == 0 {
				b.WriteString(sep)
			}
			b.WriteRune(d)
		}
		b.WriteString(rapid.StringMatching(`[a-z ]{0,10}`).Draw(t, "after"))
		if !hal.MayHoldPAN(b.String()) {
			t.Fatalf("%q passed the guard", b.String())
		}
	})
}

// A number of one of the schemes is seen among other digits too.
func TestPANAmongDigits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scheme := rapid.SampledFrom([]struct {
			first string
			n     int
		}{{"4", 16}, {"4", 19}, {"51", 16}, {"55", 16}, {"2221", 16}, {"2720", 16}, {"34", 15}, {"37", 15}, {"36", 14}, {"38", 14}, {"6011", 16}, {"3528", 16}, {"62", 16}, {"62", 19}, {"6304", 18}, {"5018", 17}}).Draw(t, "scheme")
		var digits []int
		for _, c := range scheme.first {
			digits = append(digits, int(c-'0'))
		}
		for len(digits) < scheme.n-1 {
			digits = append(digits, rapid.IntRange(0, 9).Draw(t, "digit"))
		}
		s := rapid.StringMatching(`[0-9]{0,8}`).Draw(t, "before") + number(digits) + rapid.StringMatching(`[0-9]{0,8}`).Draw(t, "after")
		if !hal.MayHoldPAN(s) {
			t.Fatalf("%s in %s passed the guard", number(digits), s)
		}
	})
}

// How often does the guard alarm for what is no card? The rates are what they
// are by the check digit, one of ten numbers of a card's length; texts without
// such numbers, which are nearly all of ours, do not alarm. A rate that rises
// makes telemetry and logs lose what they should tell.
func TestFalseAlarms(t *testing.T) {
	dice := rand.New(rand.NewPCG(7, 7))
	digits := func(n int) string {
		var b strings.Builder
		b.WriteByte(byte('1' + dice.IntN(9)))
		for range n - 1 {
			b.WriteByte(byte('0' + dice.IntN(10)))
		}
		return b.String()
	}
	at := time.Date(2026, 11, 26, 18, 11, 32, 0, time.UTC)
	moment := func() time.Time { return at.Add(time.Duration(dice.Int64N(int64(1e4 * time.Hour)))) }
	random := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(dice.Uint32())
		}
		return hex.EncodeToString(b)
	}
	for _, test := range []struct {
		what string
		make func() string
		most float64 // of a thousand
	}{
		{"a name of a device", func() string { return "front-printer-" + digits(2) }, 0},
		{"a serial number of 10 digits", func() string { return "J5ZK" + digits(10) }, 0},
		{"a serial number of 12 digits", func() string { return digits(12) }, 0},
		{"a serial number of 13 digits", func() string { return digits(13) }, 110},
		{"a serial number of 16 digits", func() string { return digits(16) }, 125},
		{"a serial number of 20 digits", func() string { return digits(20) }, 330},
		{"a time in milliseconds", func() string { return "job-" + fmt.Sprint(moment().UnixMilli()) }, 0},
		{"a time in microseconds", func() string { return fmt.Sprint(moment().UnixMicro()) }, 70},
		{"a time of RFC 3339", func() string { return moment().Format(time.RFC3339Nano) }, 0},
		{"a date and a time", func() string { return moment().Format(time.DateTime) }, 0},
		{"a network address", func() string {
			return fmt.Sprintf("tcp:192.168.%d.%d:%d", dice.IntN(256), dice.IntN(256), dice.IntN(65536))
		}, 0},
		{"a USB key", func() string {
			return fmt.Sprintf("usb:%04x:%04x:%s@1-1.2", dice.IntN(65536), dice.IntN(65536), random(4))
		}, 0},
		{"a SHA-256", func() string { return random(32) }, 10},
		{"a version", func() string {
			return fmt.Sprintf("%d.%d.%d-rc%d", dice.IntN(100), dice.IntN(100), dice.IntN(100), dice.IntN(9))
		}, 0},
		{"a line of a log", func() string {
			return fmt.Sprintf(`time=%s level=INFO msg="command done" verb=restart-app id=%s took=%s attempts=%d`, moment().Format(time.RFC3339Nano), random(8), time.Duration(dice.Int64N(1e10)), dice.IntN(10))
		}, 5},
	} {
		const n = 5000
		alarms := 0
		for range n {
			if hal.MayHoldPAN(test.make()) {
				alarms++
			}
		}
		if rate := float64(alarms) * 1000 / n; rate > test.most {
			t.Errorf("%s, e.g. %q: %.1f of 1000 alarm, want at most %v", test.what, test.make(), rate, test.most)
		} else {
			t.Logf("%-32s %5.1f of 1000", test.what, rate)
		}
	}
}

// Text that a hostile device makes up costs no more than its length.
func FuzzMayHoldPAN(f *testing.F) {
	f.Add("4111 1111 1111 1111")
	f.Add("%B%B%B;;;===^^^")
	f.Add(strings.Repeat("1 ", 300))
	f.Add("\xff\xfe４１１１")
	f.Fuzz(func(t *testing.T, s string) {
		_ = hal.MayHoldPAN(s)
		if !hal.MayHoldPAN(s + "x4111-1111-1111-1111") {
			t.Errorf("what stands before hides the number: %q", s)
		}
		if !hal.MayHoldPAN("4111 1111 1111 1111x" + s) {
			t.Errorf("what stands behind hides the number: %q", s)
		}
	})
}
