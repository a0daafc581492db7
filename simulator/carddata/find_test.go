package carddata_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/tillward/tillward/hal"
	"github.com/tillward/tillward/simulator/carddata"
)

// Whatever form a number has, it is found; and what is not there is not.
func TestFind(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 1))
	deck := carddata.Deck(dice, 26)
	other := carddata.Deck(dice, 26)
	for _, c := range deck {
		n, err := strconv.ParseUint(c.PAN, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		packed, _ := hex.DecodeString(c.PAN + strings.Repeat("F", len(c.PAN)%2))
		forms := append(c.Texts(),
			hex.EncodeToString([]byte("x"+c.PAN+"y")), strings.ToUpper(hex.EncodeToString([]byte(c.PAN))), "\x5a\x08"+string(packed),
			base64.StdEncoding.EncodeToString([]byte(c.PAN)), base64.StdEncoding.EncodeToString([]byte("a"+c.PAN+"bc")), base64.StdEncoding.EncodeToString([]byte("ab"+c.PAN)),
			string(binary.BigEndian.AppendUint64(nil, math.Float64bits(float64(n)))), string(binary.LittleEndian.AppendUint64(nil, n)),
			fmt.Sprintf("%q", strings.Split(c.PAN, "")),
		)
		for _, form := range forms {
			if got := carddata.Find([]byte("before"+form+"after"), deck); len(got) == 0 {
				t.Errorf("%s was not found in %q", c.PAN, form)
			}
			if got := carddata.Find([]byte("before"+form+"after"), other); len(got) > 0 {
				t.Errorf("found in %q: %v", form, got)
			}
		}
		if !hal.MayHoldPAN(c.PAN) {
			t.Errorf("%s is none", c.PAN)
		}
		for _, text := range c.Texts() {
			if !hal.MayHoldPAN(text) {
				t.Errorf("%q passes the guard", text)
			}
		}
	}
}
