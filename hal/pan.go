package hal

import (
	"strings"
	"unicode/utf8"
)

// MayHoldPAN reports whether s could carry a primary account number: 13 to 19
// digits, with or without separators, that pass the Luhn check [ISO/IEC
// 7812-1, annex B], or the shape of magnetic track data. Whatever leaves the
// box goes past it; a false alarm costs a sample, a miss costs a card.
//
// Two kinds of numbers pass that are no cards: zeros, and numbers that begin
// with 1 and have other than 15 digits. 1 is of the airlines, whose cards have
// 15 [ISO/IEC 7812-1, 4.2]; times in milliseconds and less begin so until 2033.
// Of numbers that chance has made, one of ten alarms; see TestFalseAlarms.
func MayHoldPAN(s string) bool {
	if trackOne(s) {
		return true
	}
	if strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 && few(s) {
		return false // nearly all there is
	}
	var groups [][]byte // runs of digits with only separators between them
	var slashed []bool  // whether a / is among those before it
	open, slash := false, false
	sentinel := false // a ; stood before them
	for i := 0; i < len(s); {
		r, size := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
		}
		i += size
		if d, ok := digit(r); ok {
			if !open {
				groups, slashed = append(groups, nil), append(slashed, slash)
			}
			open, slash = true, false
			groups[len(groups)-1] = append(groups[len(groups)-1], d)
			continue
		}
		open = false
		if separates(r) {
			slash = slash || r == '/'
			continue
		}
		if trackTwo(groups, sentinel, r, s[i:]) || luhnAmong(groups, slashed) {
			return true
		}
		groups, slashed, slash, sentinel = groups[:0], slashed[:0], false, r == ';'
	}
	return luhnAmong(groups, slashed)
}

// few reports whether s has fewer digits than the shortest shape.
func few(s string) bool {
	n := 0
	for i := range len(s) {
		if s[i] >= '0' && s[i] <= '9' {
			n++
		}
	}
	return n < 8
}

// digit returns the digit, as '0' to '9', that r is in any of the ways in which
// keyboards and printers write it.
func digit(r rune) (byte, bool) {
	for _, zero := range []rune{'0', 0x0660, 0x06f0, 0x0966, 0xff10} { // also Arabic, Persian, Devanagari, full width
		if r >= zero && r <= zero+9 {
			return '0' + byte(r-zero), true
		}
	}
	return 0, false
}

// separates reports whether r may stand between the digits of one number. A
// colon does not: times and network addresses would alarm.
func separates(r rune) bool {
	switch r {
	case ' ', '-', '.', '_', '/', ',', '\'', '\t', '\n', '\r', 0, 0xa0, 0xad, 0x202f, 0x2060, 0xfeff:
		return true
	}
	return r >= 0x2000 && r <= 0x2015 // spaces, joiners and dashes
}

// mostSlashed is how many digits of a card stand together where it is written
// with slashes: 4, 5 or 6. More between slashes are names in a path, which the
// audit trail shall not lose by chance.
const mostSlashed = 6

// luhnAmong tries each stretch of neighbouring groups: a card number may stand
// beside another number with nothing but a space between them.
func luhnAmong(groups [][]byte, slashed []bool) bool {
	for i := range groups {
		var digits []byte
		for j := i; j < len(groups); j++ {
			g := groups[j]
			if j > i && slashed[j] && (len(groups[j-1]) > mostSlashed || len(g) > mostSlashed) {
				break
			}
			if digits = append(digits, g...); luhnInside(digits) {
				return true
			}
			if len(digits) > 19 {
				break
			}
		}
	}
	return false
}

// trackOne finds %B and a number, or %B and the ^ behind one [ISO/IEC 7813].
func trackOne(s string) bool {
	_, rest, ok := strings.Cut(s, "%B")
	for ; ok; _, rest, ok = strings.Cut(rest, "%B") {
		n := 0
		for i, r := range rest {
			if _, is := digit(r); is {
				n++
			} else if !separates(r) {
				if r == '^' && i > 0 {
					return true
				}
				break
			}
		}
		if n >= 4 {
			return true
		}
	}
	return false
}

// trackTwo reports whether the groups before r, and what follows it, are a
// number with its expiry date: ;digits= as on tracks 2 and 3 [ISO/IEC 7813,
// 4909], or as many digits as a card has and then =, ^ or D, as where the
// sentinel was taken off or a chip says the same [EMV Book 3, tag 57].
func trackTwo(groups [][]byte, sentinel bool, r rune, rest string) bool {
	if r != '=' && r != '^' && r != 'D' {
		return false
	}
	n := 0
	for _, g := range groups {
		n += len(g)
	}
	if sentinel && r == '=' && n >= 8 {
		return true
	}
	if n < 12 || n > 19+2 {
		return false
	}
	if r == '^' {
		return true
	}
	if len(rest) < 4 {
		return false
	}
	for i := range 4 {
		if rest[i] < '0' || rest[i] > '9' {
			return false
		}
	}
	return true
}

// luhnInside reports whether d is a number that passes, or holds one of a
// length that its first digits have. Looking for every number inside would
// condemn two of three serial numbers by chance.
func luhnInside(d []byte) bool {
	if len(d) >= 13 && len(d) <= 19 && luhn(d) && (d[0] != '1' || len(d) == 15) && strings.Trim(string(d), "0") != "" {
		return true
	}
	for i := 0; i+14 <= len(d); i++ {
		for n := 14; n <= 19 && i+n <= len(d); n++ {
			if issued(d[i:i+2], n) && luhn(d[i:i+n]) {
				return true
			}
		}
	}
	return false
}

// issued reports whether cards that begin so have that many digits.
func issued(first []byte, n int) bool {
	two := 10*(first[0]-'0') + first[1] - '0'
	switch n {
	case 14: // Diners
		return two == 30 || two == 36 || two == 38 || two == 39
	case 15: // American Express
		return two == 34 || two == 37
	case 16: // most
		return two >= 22 && two <= 27 || two == 35 || two >= 40 && two <= 69
	}
	return two == 50 || two >= 56 && two <= 69 || n == 19 && two >= 40 && two <= 49 // Maestro, UnionPay; Visa
}

func luhn(d []byte) bool {
	sum := 0
	for i := range d {
		v := int(d[len(d)-1-i] - '0')
		if i%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}
