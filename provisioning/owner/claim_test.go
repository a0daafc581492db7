package owner_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/tillward/tillward/provisioning/identity"
	"github.com/tillward/tillward/provisioning/owner"
)

const till = "abcdefghijklmnopqrstuvwx"

func TestDeviceOfIsTheIDOfItsEK(t *testing.T) {
	area := []byte("a TPMT_PUBLIC")
	if got, want := owner.DeviceOf(sha256.Sum256(area)), identity.DeviceID(area); got != want {
		t.Errorf("device %s, want %s", got, want)
	}
}

func TestClaimIsReadAsPeopleWriteIt(t *testing.T) {
	// By hand: A1 is 10x + 1 = 21, times x again is 42, less 37 (x^5+x^2+1) is 15, which is F.
	const code = "00000-00000-00000-000A1-F"
	for _, text := range []string{
		code, "00000-00000-00000-000a1-f", "000000000000000000AlF", "ooooo OOOOO 00000 000AI F",
		"tillward:claim?d=" + till + "&c=" + code, "TILLWARD:CLAIM?d=" + till + "&c=" + strings.ToLower(code),
	} {
		c, err := owner.ParseClaim(text)
		if err != nil || c.Code != code {
			t.Errorf("%q: got %q and %v, want %s", text, c.Code, err, code)
		}
		if want := strings.Contains(text, till); (c.Device == till) != want {
			t.Errorf("%q: device %q", text, c.Device)
		}
	}
	for _, text := range []string{
		"", "ooooo OOOOO 00000", code[:len(code)-1], code + "0", "00000-00000-00000-000A1-Y", "U0000-00000-00000-000A1-F", "00000-00000-00000-00\u00001-Z",
		"tillward:claim?d=short&c=" + code, "tillward:claim?d=" + till, "tillward:claim?d=" + strings.ToUpper(till) + "&c=" + code, strings.Repeat("0", 500),
	} {
		if c, err := owner.ParseClaim(text); !errors.Is(err, owner.ErrMalformed) {
			t.Errorf("%q: got %v and %v, want malformed", text, c, err)
		} else if strings.Contains(err.Error(), "000A") {
			t.Errorf("%q: the error tells the code: %v", text, err)
		}
	}
}

func TestNewClaimRoundTrips(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		c := owner.NewClaim(till)
		if len(c.Code) != 25 || seen[c.Code[:23]] {
			t.Fatalf("code %q", c.Code)
		}
		seen[c.Code[:23]] = true
		got, err := owner.ParseClaim(c.URI())
		if err != nil || got != c {
			t.Fatalf("%s: got %v and %v", c.URI(), got, err)
		}
	}
}

// TestClaimFindsSlips makes every wrong character and every swap of neighbours.
func TestClaimFindsSlips(t *testing.T) {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	code := strings.ReplaceAll(owner.NewClaim(till).Code, "-", "")
	for i := range len(code) {
		for _, r := range digits {
			if slip := code[:i] + string(r) + code[i+1:]; slip != code {
				if _, err := owner.ParseClaim(slip); err == nil {
					t.Errorf("%s passes for %s", slip, code)
				}
			}
		}
		if i > 0 {
			if slip := code[:i-1] + code[i:i+1] + code[i-1:i] + code[i+1:]; slip != code {
				if _, err := owner.ParseClaim(slip); err == nil {
					t.Errorf("%s passes for %s", slip, code)
				}
			}
		}
	}
}

func TestClaimOfAnotherDeviceIsWorthless(t *testing.T) {
	c := owner.NewClaim(till)
	other := owner.Claim{Device: strings.Repeat("a", 24), Code: c.Code}
	if !c.Matches(c.Hash()) {
		t.Error("the code does not match its own hash")
	}
	if other.Matches(c.Hash()) || (owner.Claim{Code: c.Code}).Matches(owner.Claim{Code: c.Code}.Hash()) || c.Matches("") {
		t.Error("a code matches what it must not")
	}
	if other.Key().Equal(c.Key()) || owner.NewClaim(till).Key().Equal(c.Key()) {
		t.Error("two codes stand for one key")
	}
	if !c.Bearer().Key.Equal(c.Key().Public().(ed25519.PublicKey)) {
		t.Error("the bearer's key is not the code's")
	}
}

func FuzzParseClaim(f *testing.F) {
	f.Add(owner.NewClaim(till).URI())
	f.Add("0000 0000")
	f.Add("tillward:claim?d=&c=")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := owner.ParseClaim(text)
		if err != nil {
			if !errors.Is(err, owner.ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			return
		}
		again := c.Code
		if c.Device != "" {
			again = c.URI()
		}
		if got, err := owner.ParseClaim(again); err != nil || got != c {
			t.Fatalf("%q: %v and %v, first %v", again, got, err, c)
		}
	})
}
