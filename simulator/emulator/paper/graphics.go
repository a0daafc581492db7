package paper

// bitImage is ESC *: a picture that stands in the line as a character does.
func (p *Press) bitImage(cmd []byte) bool {
	m, w, data := cmd[2], le(cmd[3:]), cmd[5:]
	switch m {
	case 0, 1: // 8 dots high, of a third of the density
		p.add(columns(w, 1, data).scale(2-int(m&1), 3))
	case 32, 33:
		p.add(columns(w, 3, data).scale(2-int(m&1), 1))
	default:
		return false
	}
	return true
}

// rasterImage is GS v 0.
func (p *Press) rasterImage(cmd []byte) bool {
	m := cmd[3]
	if cmd[2] != '0' || m > 3 && (m < '0' || m > '3') {
		return false
	}
	p.block(raster(le(cmd[4:])*8, le(cmd[6:]), cmd[8:]).scale(1+int(m&1), 1+int(m>>1&1)))
	return true
}

// graphics is GS ( L and GS 8 L: pictures are stored, or stored and printed
// [Epson ESC/POS reference: GS ( L / GS 8 L]. There is one colour.
func (p *Press) graphics(par []byte) bool {
	if len(par) < 2 || par[0] != 48 {
		return false
	}
	switch par[1] {
	case 0, 1, 48, 49: // how much memory, how dense
		return par[1]&1 == 1
	case 2, 50: // print what is stored
		if p.graph != nil {
			b := p.graph
			p.graph = nil
			p.block(b)
		}
		return true
	case 112, 113: // store for printing, in rows or columns
		b, ok := picture(par, 2)
		if !ok {
			return false
		}
		p.graph = b
		return true
	case 67, 83, 68, 84: // define one with a key, for good or until power is lost
		if len(par) < 11 || par[5] != 1 {
			return false
		}
		kind := byte(112) // rows
		if par[1]&1 == 0 {
			kind = 113
		}
		b, ok := picture(append([]byte{par[0], kind, par[2], 1, 1, par[10]}, append(par[6:10:10], par[11:]...)...), 2)
		if ok {
			p.keyed[string(par[3:5])] = b
		}
		return ok
	case 66, 82: // delete one
		if len(par) < 4 {
			return false
		}
		delete(p.keyed, string(par[2:4]))
		return true
	case 65, 81: // delete all
		clear(p.keyed)
		return true
	case 69, 85: // print one
		if len(par) < 6 || p.keyed[string(par[2:4])] == nil {
			return false
		}
		p.block(p.keyed[string(par[2:4])].scale(max(1, int(par[4])), max(1, int(par[5]))))
		return true
	}
	return false
}

// picture reads a bx by c xL xH yL yH d... from at on.
func picture(par []byte, at int) (*bitmap, bool) {
	if len(par) < at+8 || par[at] != 48 || par[at+3] != 49 {
		return nil, false
	}
	sx, sy := int(par[at+1]), int(par[at+2])
	w, h, data := le(par[at+4:]), le(par[at+6:]), par[at+8:]
	if sx < 1 || sx > 2 || sy < 1 || sy > 2 || w == 0 || h == 0 {
		return nil, false
	}
	var b *bitmap
	if par[1] == 113 {
		b = columns(w, (h+7)/8, data)
		b.h, b.bits = h, b.bits[:h*b.stride]
	} else {
		b = raster(w, h, data)
	}
	return b.scale(sx, sy), true
}

// keep is FS q: pictures for good, by number.
func (p *Press) keep(par []byte) {
	n := int(par[0])
	par = par[1:]
	clear(p.kept)
	for i := 1; i <= n && len(par) >= 4; i++ {
		x, y := le(par), le(par[2:])
		size := min(x*y*8, len(par)-4)
		p.kept[i] = columns(x*8, y, par[4:4+size])
		par = par[4+size:]
	}
}
