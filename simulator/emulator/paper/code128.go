package paper

import "strings"

// patterns128 are the widths of the symbols 0 to 106 [ISO/IEC 15417, table 1].
var patterns128 = strings.Fields(`
212222 222122 222221 121223 121322 131222 122213 122312 132212 221213 221312 231212 112232 122132 122231 113222 123122 123221
223211 221132 221231 213212 223112 312131 311222 321122 321221 312212 322112 322211 212123 212321 232121 111323 131123 131321
112313 132113 132311 211313 231113 231311 112133 112331 132131 113123 113321 133121 313121 211331 231131 213113 213311 213131
311123 311321 331121 312113 312311 332111 314111 221411 431111 111224 111422 121124 121421 141122 141221 112214 112412 122114
122411 142112 142211 241211 221114 413111 241112 134111 111242 121142 121241 114212 124112 124211 411212 421112 421211 212141
214121 412121 111143 111341 131141 114113 114311 411113 411311 113141 114131 311141 411131 211412 211214 211232 2331112`)

const (
	shift128 = 98
	start128 = 103 // of set A; B and C follow
	stop128  = 106
)

// encode128 takes data as GS k 73 has it: { and a letter selects a set or a
// function, and in set C a byte is the number of two digits.
func encode128(data string) (bars, string, bool) {
	if len(data) < 3 || data[0] != '{' || data[1] < 'A' || data[1] > 'C' {
		return nil, "", false
	}
	set := data[1]
	values := []int{start128 + int(set-'A')}
	var text strings.Builder
	shifted := false
	for i := 2; i < len(data); i++ {
		c := data[i]
		if c == '{' {
			if i++; i == len(data) {
				return nil, "", false
			}
			v, next, ok := special128(set, data[i])
			if !ok {
				return nil, "", false
			}
			if data[i] == '{' {
				text.WriteByte('{')
			}
			values, set, shifted = append(values, v), next, v == shift128 && set != 'C'
			continue
		}
		now := set
		if shifted {
			now, shifted = 'A'+'B'-set, false
		}
		v := -1
		switch {
		case now == 'C' && c < 100:
			v = int(c)
		case now == 'A' && c < 32:
			v = int(c) + 64
		case now == 'A' && c < 96, now == 'B' && c >= 32 && c < 128:
			v = int(c) - 32
		}
		if v < 0 {
			return nil, "", false
		}
		values = append(values, v)
		switch {
		case now == 'C':
			text.WriteString(string(rune('0'+v/10)) + string(rune('0'+v%10)))
		case c < 32 || c == 127:
			text.WriteByte(' ')
		default:
			text.WriteByte(c)
		}
	}
	sum := values[0]
	for i, v := range values {
		sum += i * v
	}
	var out bars
	for _, v := range append(values, sum%103, stop128) {
		for _, w := range patterns128[v] {
			out = append(out, int(w-'0'))
		}
	}
	return out, text.String(), true
}

// special128 is what { and a letter stand for, and the set from there on.
func special128(set, c byte) (value int, next byte, ok bool) {
	switch {
	case c == '{' && set == 'B':
		return '{' - 32, set, true
	case c == 'S' && set != 'C':
		return shift128, set, true
	case c >= 'A' && c <= 'C' && c != set:
		return map[byte]int{'A': 101, 'B': 100, 'C': 99}[c], c, true
	case c == '1':
		return 102, set, true
	case c == '2' && set != 'C':
		return 97, set, true
	case c == '3' && set != 'C':
		return 96, set, true
	case c == '4' && set != 'C':
		return map[byte]int{'A': 101, 'B': 100}[set], set, true
	}
	return 0, 0, false
}

// encodeGS1 chooses the set for a number with application identifiers, whose
// parentheses are for people.
func encodeGS1(data string) (bars, string, bool) {
	bare := strings.NewReplacer("(", "", ")", "", " ", "").Replace(data)
	coded := "{B{1" + bare
	if len(bare)%2 == 0 && strings.Trim(bare, "0123456789") == "" {
		coded = "{C{1"
		for i := 0; i < len(bare); i += 2 {
			coded += string([]byte{(bare[i]-'0')*10 + bare[i+1] - '0'})
		}
	}
	b, _, ok := encode128(coded)
	return b, data, ok
}
