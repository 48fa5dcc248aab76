/* A web server on evhttp, whose port is the first argument: it answers with the length of what was sent. */
#include <stdlib.h>

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>

static void answer(struct evhttp_request *request, void *unused)
{
	struct evbuffer *body = evbuffer_new();

	(void)unused;
	evbuffer_add_printf(body, "%zu bytes", evbuffer_get_length(evhttp_request_get_input_buffer(request)));
	evhttp_send_reply(request, 200, "OK", body);
	evbuffer_free(body);
}

int main(int count, char **arguments)
{
	struct event_base *base = event_base_new();
	struct evhttp *server = evhttp_new(base);

	evhttp_set_gencb(server, answer, NULL);
	if (count != 2 || evhttp_bind_socket(server, "127.0.0.1", (ev_uint16_t)atoi(arguments[1])) != 0)
		return 1;
	return event_base_dispatch(base);
}
