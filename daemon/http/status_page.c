#include "daemon/http/status_page.h"

#include <string.h>

#include "core/base/size.h"

/* The files are part of the program, byte for byte. */
#define EMBED(name, path)                                                                          \
    __asm__(".pushsection .rodata\n" #name ":\n.incbin \"" path "\"\n" #name                       \
            "_end:\n.popsection\n");                                                               \
    extern const char name[], name##_end[]

EMBED(sl_page_html, "daemon/http/page/page.html");
EMBED(sl_page_script, "daemon/http/page/page.js");

/* The page may ask this server and nobody else, and cannot be part of another one. */
#define POLICY                                                                                     \
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "       \
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

static void answer(struct sl_http_call *call, const char *content_type, const char *text,
                   const char *end)
{
    const struct sl_http_header headers[] = {{"Content-Type", content_type},
                                             {"Cache-Control", "no-cache"},
                                             {"Content-Security-Policy", POLICY},
                                             {"X-Content-Type-Options", "nosniff"},
                                             {"Referrer-Policy", "no-referrer"}};

    sl_http_answer(call, 200, headers, SL_ARRAY_LEN(headers), text, (size_t)(end - text));
}

void sl_status_page(const struct sl_front *front, struct sl_http_call *call)
{
    (void)front;
    answer(call, "text/html; charset=utf-8", sl_page_html, sl_page_html_end);
}

void sl_status_page_script(const struct sl_front *front, struct sl_http_call *call)
{
    (void)front;
    answer(call, "text/javascript; charset=utf-8", sl_page_script, sl_page_script_end);
}
