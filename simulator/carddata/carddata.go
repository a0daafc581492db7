// Package carddata makes numbers that payment cards could bear, writes them in
// every way in which hardware does, and finds them again in whatever form they
// came out of something. Tests push such numbers into the box and then look for
// them in all that leaves it.
//
// It promises to find a number that was pushed, however it is written there:
// between separators, in other scripts, as track, hex, base64, packed digits or
// a binary number. It does not find one of which parts are missing. The numbers
// are made up; that one of them is somebody's would be chance.
package carddata

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Card is what a payment card could say of itself.
type Card struct {
	PAN    string
	Holder string
	Expiry string // YYMM
}

// schemes are first digits and lengths that cards have [ISO/IEC 7812-1].
var schemes = []struct {
	first string
	n     int
}{
	{"4", 13}, {"36", 14}, {"34", 15}, {"37", 15}, {"4", 16}, {"51", 16}, {"2221", 16}, {"6011", 16}, {"3530", 16}, {"5018", 17}, {"6304", 18}, {"4", 19}, {"62", 19},
}

// Deck makes cards of all lengths, at least n.
func Deck(dice *rand.Rand, n int) []Card {
	var deck []Card
	for i := range max(n, len(schemes)) {
		s := schemes[i%len(schemes)]
		digits := []byte(s.first)
		for len(digits) < s.n-1 {
			digits = append(digits, byte('0'+dice.IntN(10)))
		}
		deck = append(deck, Card{
			PAN: string(digits) + checkDigit(digits), Holder: fmt.Sprintf("DOE/CARD%c", 'A'+rune(i%26)), Expiry: fmt.Sprintf("%02d%02d", 27+dice.IntN(9), 1+dice.IntN(12)),
		})
	}
	return deck
}

func checkDigit(digits []byte) string {
	sum := 0
	for i := range digits {
		v := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return strconv.Itoa((10 - sum%10) % 10)
}

// Texts are the ways in which hardware writes the card: the number alone, with
// separators, in other scripts, and as the tracks of a stripe [ISO/IEC 7811-6,
// 7813, 4909].
func (c Card) Texts() []string {
	wide := strings.Map(func(r rune) rune { return r - '0' + 0xff10 }, c.PAN)
	texts := []string{
		c.PAN, c.grouped(" "), c.grouped("-"), c.grouped("."), wide, "card " + c.PAN + " ok",
		"%B" + c.PAN + "^" + c.Holder + "^" + c.Expiry + "1010000000000?",
		";" + c.PAN + "=" + c.Expiry + "1010000?",
		";01" + c.PAN + "=724724000000000300038000404000000?",
		c.PAN + "D" + c.Expiry + "1010000F",
	}
	if len(c.PAN) > 13 { // of so few digits, which no scheme gives out any more, the guard sees no number within a longer one
		texts = append(texts, "000"+c.PAN+"000")
	}
	return texts
}

func (c Card) grouped(sep string) string {
	var parts []string
	for part := range slices.Chunk([]byte(c.PAN), 4) {
		parts = append(parts, string(part))
	}
	return strings.Join(parts, sep)
}

// Find returns each card that is in b, in any form, and says in which. b is
// whatever left the box: a message, a log, the file of a database.
func Find(b []byte, deck []Card) []string {
	var found []string
	ascii := digits(b)
	lower := bytes.ToLower(b)
	for _, c := range deck {
		n, _ := strconv.ParseUint(c.PAN, 10, 64)
		backwards := []byte(c.PAN)
		slices.Reverse(backwards)
		packed, _ := hex.DecodeString(c.PAN + strings.Repeat("F", len(c.PAN)%2))
		forms := map[string]bool{
			"digits":           bytes.Contains(ascii, []byte(c.PAN)),
			"digits backwards": bytes.Contains(ascii, backwards),
			"hex":              bytes.Contains(lower, []byte(hex.EncodeToString([]byte(c.PAN)))),
			"percent":          bytes.Contains(b, []byte("%3"+strings.Join(strings.Split(c.PAN, ""), "%3"))),
			"packed digits":    bytes.Contains(b, packed),
			"float":            bytes.Contains(b, binary.BigEndian.AppendUint64(nil, math.Float64bits(float64(n)))),
			"integer":          bytes.Contains(b, binary.BigEndian.AppendUint64(nil, n)),
			"little integer":   bytes.Contains(b, binary.LittleEndian.AppendUint64(nil, n)),
		}
		for shift := range 3 { // the bytes before it may be any
			enc := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + c.PAN))
			enc = enc[(shift*8+5)/6 : len(enc)-1]
			forms["base64"] = forms["base64"] || bytes.Contains(b, []byte(enc))
		}
		for form, is := range forms {
			if is {
				found = append(found, c.PAN+" as "+form)
			}
		}
	}
	slices.Sort(found)
	return found
}

// digits leaves nothing of b but its digits, in any script, so that separators
// of all kinds fall out.
func digits(b []byte) []byte {
	b = bytes.Clone(b)
	for d := range 10 { // full width, as UTF-8
		b = bytes.ReplaceAll(b, []byte(string(rune(0xff10+d))), []byte{byte('0' + d)})
	}
	out := b[:0]
	for _, c := range b {
		if c >= '0' && c <= '9' {
			out = append(out, c)
		}
	}
	return out
}
