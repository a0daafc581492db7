package virtual

// Obey is obey.
func (d *Device) Obey(line string) error { return d.obey([]byte(line)) }
