package paper

import (
	"strings"

	"golang.org/x/text/encoding/charmap"
)

// codePage turns the upper half of a byte into characters.
type codePage func(byte) rune

func of(m *charmap.Charmap) codePage { return m.DecodeByte }

// half is a page given by its upper 128 characters; a dot within it is none.
func half(s string) codePage {
	upper := []rune(strings.ReplaceAll(s, "\n", ""))
	return func(b byte) rune {
		if b < 0x80 {
			return rune(b)
		}
		return upper[b-0x80]
	}
}

const boxes = "░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀"

var katakana = half("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉┼┴┬┤├▔─│▕┌┐└┘╭╮╰╯" +
	"\u00a0｡｢｣､･ｦｧｨｩｪｫｬｭｮｯｰｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜﾝﾞﾟ" +
	"═╞╪╡◢◣◥◤♠♥♦♣●○╱╲╳円年月日時分秒〒市区町村人▒\u00a0")

// pages are those of ESC t n, by n [Epson ESC/POS reference: ESC t]. A page
// that is not here is not drawn, and ESC t says so.
var pages = map[byte]codePage{
	0: of(charmap.CodePage437), 1: katakana, 2: of(charmap.CodePage850), 3: of(charmap.CodePage860), 4: of(charmap.CodePage863), 5: of(charmap.CodePage865),
	11: half("ÇüéâäàΆçêëèïîΈÄΉΊ\ufffdΌôöΎûùΏÖÜά£έήίϊΐόύΑΒΓΔΕΖΗ½ΘΙ«»░▒▓│┤ΚΛΜΝ╣║╗╝ΞΟ┐└┴┬├─┼ΠΡ╚╔╩╦╠═╬ΣΤΥΦΧΨΩαβγ┘┌█▄δε▀ζηθικλμνξοπρσςτ´\u00ad±υφχ\ufffdψ¸°¨ωϋΰώ■\u00a0"),
	12: half("ÇüéâäàĉçêëèïîìÄĈÉċĊôöòûùİÖÜĝ£Ĝ×ĵáíóúñÑĞğĤĥ\ufffd½Ĵş«»░▒▓│┤ÁÂÀŞ╣║╗╝Żż┐└┴┬├─┼Ŝŝ╚╔╩╦╠═╬¤\ufffd\ufffdÊËÈıÍÎÏ┘┌█▄\ufffdÌ▀ÓßÔÒĠġµĦħÚÛÙŬŭ\ufffd´\u00ad\ufffdℓŉ˘\ufffd÷¸°¨˙\ufffd³²■\u00a0"),
	13: half("ÇüéâäàåçêëèïîıÄÅÉæÆôöòûùİÖÜø£ØŞşáíóúñÑĞğ¿®¬½¼¡«»░▒▓│┤ÁÂÀ©╣║╗╝¢¥┐└┴┬├─┼ãÃ╚╔╩╦╠═╬¤ºªÊËÈ€ÍÎÏ┘┌█▄¦Ì▀ÓßÔÒõÕµ\ufffd×ÚÛÙìÿ¯´\u00ad±\ufffd¾¶§÷¸°¨·¹³²■\u00a0"),
	14: half("ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩαβγδεζηθικλμνξοπρσςτυφχψ" + boxes + "ωάέήϊίόύϋώΆΈΉΊΌΎΏ±≥≤ΪΫ÷≈°∙·√ⁿ²■\u00a0"),
	15: of(charmap.ISO8859_7), 16: of(charmap.Windows1252), 17: of(charmap.CodePage866), 18: of(charmap.CodePage852), 19: of(charmap.CodePage858),
	33: half("ĆüéāäģåćłēŖŗīŹÄÅÉæÆōöĢ¢ŚśÖÜø£Ø×¤ĀĪóŻżź”¦©®¬½¼Ł«»░▒▓│┤ĄČĘĖ╣║╗╝ĮŠ┐└┴┬├─┼ŲŪ╚╔╩╦╠═╬Žąčęėįšųūž┘┌█▄▌▐▀ÓßŌŃõÕµńĶķĻļņĒŅ’\u00ad±“¾¶§÷„°∙·¹³²■\u00a0"),
	34: of(charmap.CodePage855),
	35: half("ÇüéâäàåçêëèÐðÞÄÅÉæÆôöþûÝýÖÜø£Ø₧ƒáíóúÁÍÓÚ¿⌐¬½¼¡«»" + boxes + "αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"),
	36: of(charmap.CodePage862),
	38: half("\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdΆ\ufffd·¬¦‘’Έ―ΉΊΪΌ\ufffd\ufffdΎΫ©Ώ²³ά£έήίϊΐόύΑΒΓΔΕΖΗ½ΘΙ«»░▒▓│┤ΚΛΜΝ╣║╗╝ΞΟ┐└┴┬├─┼ΠΡ╚╔╩╦╠═╬ΣΤΥΦΧΨΩαβγ┘┌█▄δε▀ζηθικλμνξοπρσςτ΄\u00ad±υφχ§ψ΅°¨ωϋΰώ■\u00a0"),
	39: of(charmap.ISO8859_2), 40: of(charmap.ISO8859_15),
	42: half("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤ĄČĘĖ╣║╗╝ĮŠ┐└┴┬├─┼ŲŪ╚╔╩╦╠═╬Žąčęėįšųūž┘┌█▄▌▐▀αβΓπΣσµτΦΘΩδ∞φε⋂≡±≥≤„“÷≈°∙˙√ⁿ²■\u00a0"),
	43: half("АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмноп░▒▓│┤ĄČĘĖ╣║╗╝ĮŠ┐└┴┬├─┼ŲŪ╚╔╩╦╠═╬Žąčęėįšųūž┘┌█▄▌▐▀рстуфхцчшщъыьэюяЁё≥≤„“÷≈°∙·√ⁿ²■\u00a0"),
	44: half("АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмноп" + boxes + "рстуфхцчшщъыьэюяЁёҐґЄєІіЇї·√№¤■\u00a0"),
	45: of(charmap.Windows1250), 46: of(charmap.Windows1251), 47: of(charmap.Windows1253), 48: of(charmap.Windows1254),
	49: of(charmap.Windows1255), 50: of(charmap.Windows1256), 51: of(charmap.Windows1257), 52: of(charmap.Windows1258),
	53: half("ЂЃ‚ѓ„…†‡€‰Љ‹ЊҚҺЏђ‘’“”•–—\ufffd™љ›њқһџ\u00a0ҰұӘ¤Ө¦§Ё©Ғ«¬\u00ad®Ү°±Ііөµ¶·ё№ғ»әҢңүАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя"),
}

// nations are the sets of ESC R n: what stands for #$@[\]^`{|}~ there [Epson
// ESC/POS reference: ESC R].
var nations = map[byte]string{
	0: "#$@[\\]^`{|}~", 1: "#$à°ç§^`éùè¨", 2: "#$§ÄÖÜ^`äöüß", 3: "£$@[\\]^`{|}~", 4: "#$@ÆØÅ^`æøå~", 5: "#¤ÉÄÖÅÜéäöåü",
	6: "#$@°\\é^ùàòèì", 7: "₧$@¡Ñ¿^`¨ñ}~", 8: "#$@[¥]^`{|}~", 9: "#¤ÉÆØÅÜéæøåü", 10: "#$ÉÆØÅÜéæøåü", 11: "#$á¡Ñ¿é`íñóú",
	12: "#$á¡Ñ¿éüíñóú", 13: "#$@[₩]^`{|}~", 14: "#$ŽŠĐĆČžšđćč", 15: "#¥@[\\]^`{|}~",
}

const national = "#$@[\\]^`{|}~"

// decode returns the character of a byte.
func (p *Press) decode(b byte) rune {
	if b < 0x80 {
		if i := strings.IndexByte(national, b); i >= 0 {
			return []rune(nations[p.nation])[i]
		}
		return rune(b)
	}
	return pages[p.page](b)
}
