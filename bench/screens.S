# A boot sector for bench/screen.py: 1280x800 in 32 bits a pixel, on QEMU's standard VGA.
# The byte before the boot signature says what it does:
#   0  each key turns the screen from one colour to the other
#   1  the same by itself after 3.1 to 6.6 s, and at that moment a byte to the debug port e9h
#   2  a picture of 1280x1600 from the disk's second sector on, moved up and down 100 times a second
.code16
.intel_syntax noprefix
start:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    mov [drive], dl
    mov si, offset mode_registers
next_register:                          # Bochs' display interface: an index, then its value
    lodsw
    mov dx, 0x1ce
    out dx, ax
    lodsw
    inc dx
    out dx, ax
    cmp si, offset mode_registers_end
    jne next_register
    mov eax, 0x80001010                 # the VGA card is device 2; its first region is the frame buffer
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
    and al, 0xf0
    mov [frame_buffer], eax
    sti
    mov al, [what]
    cmp al, 2
    je move_picture
    cmp al, 1
    je change_alone

change_at_keys:
    call fill
    xor ah, ah
    int 0x16
    jmp change_at_keys

change_alone:
    call fill
    imul ax, [random], 25173
    add ax, 13849
    mov [random], ax
    shr ax, 10
    add ax, 57                          # ticks of 55 ms
    add ax, [0x46c]
rest:
    hlt
    cmp ax, [0x46c]
    jne rest
    out 0xe9, al
    jmp change_alone

move_picture:
    mov ecx, [frame_buffer]
    mov [target], ecx
load:
    mov ah, 0x42
    mov dl, [drive]
    mov si, offset packet
    int 0x13
    call unreal
    mov esi, 0x10000
    mov edi, [target]
    mov ecx, 64 * 512 / 4
    rep movs dword ptr es:[edi], dword ptr ds:[esi]
    mov [target], edi
    add word ptr [first_sector], 64
    cmp word ptr [first_sector], 1 + 16000
    jb load
    mov al, 0x34                        # the timer at 100 Hz
    out 0x43, al
    mov ax, 11932
    out 0x40, al
    mov al, ah
    out 0x40, al
    mov cx, 8
    xor bx, bx
step:
    hlt
    add bx, cx
    jz turn
    cmp bx, 800
    jne show
turn:
    neg cx
show:
    mov ax, 9                           # the first line shown
    mov dx, 0x1ce
    out dx, ax
    mov ax, bx
    inc dx
    out dx, ax
    jmp step

fill:
    call unreal
    xor dword ptr [colour], 0x00ffff00
    mov eax, [colour]
    mov edi, [frame_buffer]
    mov ecx, 1280 * 800
    rep stos dword ptr es:[edi], eax
    ret

unreal:                                 # 32-bit addresses in real mode; the BIOS may have undone it
    cli
    push ds
    push ds
    lgdt [table_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 8
    mov ds, bx
    mov es, bx
    and al, 0xfe
    mov cr0, eax
    pop ds
    pop es
    sti
    ret

mode_registers:
    .word 4, 0, 1, 1280, 2, 800, 3, 32, 6, 1280, 4, 0x41
mode_registers_end:
table:
    .quad 0
    .word 0xffff, 0, 0x9200, 0x00cf
table_pointer:
    .word 15
    .long table
packet:                                 # 64 sectors to 1000:0000
    .word 16, 64, 0, 0x1000
first_sector:
    .quad 1
drive:
    .byte 0
random:
    .word 12345
colour:
    .long 0x000000c0
frame_buffer:
    .long 0
target:
    .long 0

    .org 509
what:
    .byte 0
    .word 0xaa55
