package hal

import "strings"

// MayHoldPAN reports whether s could carry a primary account number: 13 to 19
// digits, with or without separators, that pass the Luhn check [ISO/IEC
// 7812-1, annex B], or the shape of magnetic track data. Whatever leaves the
// box goes past it; a false alarm costs a sample, a miss costs a card.
func MayHoldPAN(s string) bool {
	if strings.Contains(s, "%B") || trackTwo(s) {
		return true
	}
	var groups [][]byte // runs of digits with only separators between them
	open := false
	for i := range len(s) {
		switch {
		case s[i] >= '0' && s[i] <= '9':
			if !open {
				groups = append(groups, nil)
			}
			open = true
			groups[len(groups)-1] = append(groups[len(groups)-1], s[i])
		case s[i] == ' ' || s[i] == '-' || s[i] == '.':
			open = false
		default:
			if luhnAmong(groups) {
				return true
			}
			groups, open = nil, false
		}
	}
	return luhnAmong(groups)
}

// luhnAmong tries each stretch of neighbouring groups: a card number may stand
// beside another number with nothing but a space between them.
func luhnAmong(groups [][]byte) bool {
	for i := range groups {
		var digits []byte
		for _, g := range groups[i:] {
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

// trackTwo finds ;digits= as on track 2 [ISO/IEC 7813].
func trackTwo(s string) bool {
	_, rest, ok := strings.Cut(s, ";")
	for ; ok; _, rest, ok = strings.Cut(rest, ";") {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		if n >= 8 && n < len(rest) && rest[n] == '=' {
			return true
		}
	}
	return false
}

// luhnInside reports whether d is a number that passes, or holds one of the
// usual 16 digits. Looking for every shorter number inside would condemn two
// of three serial numbers by chance.
func luhnInside(d []byte) bool {
	if len(d) >= 13 && len(d) <= 19 && luhn(d) {
		return true
	}
	for i := 0; i+16 <= len(d); i++ {
		if luhn(d[i : i+16]) {
			return true
		}
	}
	return false
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
