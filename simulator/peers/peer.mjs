// Lets one of the peers do one thing to a printer; the test starts it.
import { createInterface } from 'node:readline'
import { createRequire } from 'node:module'
import ReceiptPrinterEncoder from '@point-of-sale/receipt-printer-encoder'
import thermal from 'node-thermal-printer'
import receiptio from 'receiptio'

const { PNG } = createRequire(import.meta.url)('pngjs')

// picture is a disc on white, with a hole: what comes out wrong is seen at once.
function picture(size) {
  const data = new Uint8ClampedArray(size * size * 4).fill(255)
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const r = Math.hypot(x - size / 2, y - size / 2)
      if (r < size / 2 - 1 && (r > size / 5 || x < size / 2)) data.fill(0, (y * size + x) * 4, (y * size + x) * 4 + 3)
    }
  }
  return { width: size, height: size, data }
}

function png(size) {
  const p = picture(size)
  const out = new PNG({ width: size, height: size })
  out.data.set(p.data)
  return PNG.sync.write(out)
}

const ticket = `^^^THE CORNER CAFE

1 Counter Street | Café "Zoë"
---
{w:*,8,10}
Espresso | 1 | 2.40
Grüner Tee, groß | 2 | 6.20
_Crème brûlée_ | 1 | \`5.50\`
=
"TOTAL | ^^€14.10
{border:line; width:10,10,*}
VAT % | Net | VAT
-
20.0 | 11.75 | 2.35
{border:space; width:auto}
{code:2012345678903; option:ean,hri}
{code:TILL-0042; option:code128,2,60,hri}
{code:https://example.org/receipt/0042; option:qrcode,4,m}
{image:${png(120).toString('base64')}}
~
Thank you!
`

const peers = {
  // status answers receiptio's option lines, one after the other.
  async status() {
    for await (const line of createInterface({ input: process.stdin })) {
      console.log(await receiptio.print('', line))
    }
  },

  async receiptio(options) {
    console.log(await receiptio.print(ticket, options))
  },

  async thermal(address) {
    const p = new thermal.printer({ type: thermal.types.EPSON, interface: `tcp://${address}`, characterSet: 'WPC1252', width: 48 })
    p.alignCenter()
    p.setTextQuadArea()
    p.println('THE CORNER CAFE')
    p.setTextNormal()
    p.bold(true)
    p.println('Café "Zoë"')
    p.bold(false)
    p.underlineThick(true)
    p.println('1 Counter Street')
    p.underlineThick(false)
    p.invert(true)
    p.println(' OPEN ')
    p.invert(false)
    p.alignLeft()
    p.drawLine()
    p.leftRight('Espresso', '2.40')
    p.table(['Tea', '2', '6.20'])
    p.tableCustom([{ text: 'Total', align: 'LEFT', width: 0.5, bold: true }, { text: '14.10', align: 'RIGHT', width: 0.5 }])
    p.setTypeFontB()
    p.println('in font B')
    p.setTypeFontA()
    p.setTextSize(1, 2)
    p.println('Wider')
    p.setTextNormal()
    p.setLineSpacing(60)
    p.println('far')
    p.resetLineSpacing()
    p.upsideDown(true)
    p.println('the other way round')
    p.upsideDown(false)
    p.alignCenter()
    p.code128('TILL-0042', { width: 'LARGE', height: 60, text: 2 })
    p.newLine()
    p.printBarcode('2012345678903', 67, { hriPos: 2, width: 3, height: 60 })
    p.newLine()
    p.printQR('https://example.org/receipt/0042', { cellSize: 4, correction: 'M' })
    p.pdf417('TILL-0042')
    await p.printImageBuffer(png(120))
    p.beep()
    p.openCashDrawer()
    p.cut()
    await p.execute()
  },

  // encoder writes a job to its output; the test sends it.
  async encoder(model) {
    const options = model ? { printerModel: model } : { language: 'esc-pos', columns: 48, feedBeforeCut: 3 }
    const e = new ReceiptPrinterEncoder(options)
    e.initialize().codepage('auto')
      .align('center').size(2).line('THE CORNER CAFE').size(1)
      .bold(true).line('Café "Zoë" Ελλάδα Žižkov Привет €').bold(false)
      .underline(true).line('1 Counter Street').underline(false)
      .invert(true).line(' OPEN ').invert(false).align('left')
      .rule().rule({ style: 'double' })
      .table(
        [{ width: 20, align: 'left' }, { width: 10, align: 'right' }],
        [['Espresso', '2.40'], ['Tea', '6.20'], ['Total', (x) => x.bold().text('14.10').bold()]],
      )
      .box({ style: 'double', align: 'center', width: 30 }, 'in a double box')
      .box({ style: 'single', width: 24 }, 'in a single box')
      .font('B').line('in font B').font('A')
      .width(2).line('wide').width(1).height(3).line('high').height(1)
      .align('center')
      .barcode('201234567890', 'ean13', { height: 60, text: true })
      .barcode('TILL-42', 'code39', { height: 60, width: 2, text: true })
      .barcode('TILL-0042', 'code128', { height: 60, width: 2, text: true })
      .qrcode('https://example.org/receipt/0042', { model: 2, size: 5, errorlevel: 'm' })
      .pdf417('TILL-0042')
      .image(picture(120), 120, 120, 'threshold')
      .pulse().cut('partial')
    process.stdout.write(e.encode())
  },
}

await peers[process.argv[2]](...process.argv.slice(3))
